"""Addresses of running Ray clusters, and bounded waits for an answer."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import RayError

from cluster.errors import AddressError, short_message
from cluster.resources.head import check_head

T = TypeVar("T")

_POLL_S = 0.5
_ANSWER_S = 10.0
"""Longest wait for an address, because the head of a cluster may be starting."""
_LOCAL = "local"
"""Ray's own value of `RAY_ADDRESS` for a new local Ray."""
_NEAREST = "auto"
_ADDRESS = re.compile(rf"{_NEAREST}|[^/]+:\d+")


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """The address of a running cluster."""

    value: str
    """HOST:PORT, or auto."""
    is_from_environment: bool

    def __str__(self) -> str:
        return f"RAY_ADDRESS {self.value}" if self.is_from_environment else self.value


def cluster_address(address: str | None) -> ClusterAddress | None:
    """The cluster that a run joins, by `address` or the environment's `RAY_ADDRESS`; `None` if it starts a local Ray.

    Raises:
        AddressError: it is neither `HOST:PORT` nor `auto`.
    """
    value = address or os.environ.get("RAY_ADDRESS")
    if not value or value == _LOCAL:
        return None
    found = ClusterAddress(value, not address)
    if not _ADDRESS.fullmatch(value):
        source = "RAY_ADDRESS " if found.is_from_environment else ""
        raise AddressError(
            f"{source}{value!r} is not the address of a Ray cluster; expected HOST:PORT or auto (from outside: `ray job submit`)"
        )
    return found


def answered(address: ClusterAddress, ask: Callable[[], T], deadline: float) -> T:
    """What `ask` returns once a cluster answers. Retries for a while, because the head of a cluster may be starting.

    Raises:
        AddressError: nothing answers there, or the cluster refuses this process's token or runs another Ray or Python.
    """
    deadline = min(deadline, time.monotonic() + _ANSWER_S)
    while True:
        try:
            if address.value != _NEAREST:
                check_head(address.value, str(address), deadline)
            AuthenticationTokenLoader.instance().reset_cache()  # it may be that of another Ray
            return ask()
        except OSError as error:
            if time.monotonic() >= deadline:
                remedy = "unset RAY_ADDRESS to start a local Ray, or start" if address.is_from_environment else "start"
                raise AddressError(
                    f"no Ray cluster answers at {address}: {_first_line(error)}; {remedy} the head and open its port"
                ) from error
            time.sleep(_POLL_S)
        except AddressError:
            raise
        except (RuntimeError, RayError) as error:  # such as of `auto`, which only Ray can find
            raise AddressError(f"cannot join the Ray cluster at {address}: {short_message(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
