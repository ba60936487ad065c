"""Holds the nodes of a cluster against the driver's machine before an actor starts: what differs is one line, not a failure later."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

from cluster.resources.node_report import ask_nodes, differences, problems, reported, versions
from loop.errors import StoreError, UserError, one_line
from loop.store.reading import RUN
from loop.store.storage.base import TMP, Storage

log = logging.getLogger(__name__)

_DRIVER = "driver"
_SHARE = "give --run-dir a folder that all nodes share at the same path, or a URI such as s3://bucket/run"


def check_nodes(paths: Sequence[str], storage: Storage, num_nodes: int, timeout_s: float) -> None:
    """Compare versions and clocks, and look for the files and the run folder that actors use. Does nothing on one node.

    Args:
        paths: local files and folders that every node needs.
        storage: of the run folder.
        num_nodes: of the cluster, at this moment.
        timeout_s: for all nodes together.

    Raises:
        UserError: a node differs; one line for each difference, with what to do.
    """
    if num_nodes == 1:
        return
    with _marked(storage) as folder:
        answers = ask_nodes(paths, partial(visit, storage, folder), timeout_s)
        found = problems(answers, versions())
        if not found and (unseen := len(answers) - _num_marks(storage, folder)) > 0:
            found = [f"{unseen} of {len(answers)} nodes write into another folder than {storage.uri} of the driver; {_SHARE}"]
    if found:
        raise UserError("\n".join(found))
    log.info("%d nodes have the versions, the files and the run folder of the driver", len(answers))


def wrong_here(paths: Sequence[str], storage: Storage, driver: Mapping[str, str]) -> str:
    """What is wrong on the node that this process is on, and has joined a run; empty if nothing is. Its clock is not compared.

    Args:
        paths, storage: as for `check_nodes`.
        driver: versions of the driver.
    """
    report = reported("", paths, lambda _: "" if storage.size(RUN) is not None else _not_shared(storage))
    return "; ".join(differences(report, driver))


# ---- the run folder


@contextmanager
def _marked(storage: Storage) -> Iterator[str]:
    """A folder of the run with the driver's mark in it, for the duration of a `with` block. What a killed driver leaves of it is removed
    by the next one, except in an object store, where it is a few bytes that nothing reads."""
    folder = f".nodes-{uuid4().hex}{TMP}"
    storage.write(f"{folder}/{_DRIVER}", folder.encode())
    try:
        yield folder
    finally:
        storage.remove(folder)


def visit(storage: Storage, folder: str, node_id: str) -> str:
    """Read the driver's mark on a node and leave one beside it. Returns what is wrong, or an empty text."""
    try:
        mark = storage.read(f"{folder}/{_DRIVER}")
        storage.write(f"{folder}/{node_id}", mark)
    except FileNotFoundError:
        return _not_shared(storage)
    except (StoreError, UserError, OSError) as error:
        return f"the run folder {storage.uri} cannot be used: {one_line(error)}; check rights and credentials on this node"
    return ""


def _not_shared(storage: Storage) -> str:
    return f"the run folder {storage.uri} does not hold what the driver has written there; {_SHARE}"


def _num_marks(storage: Storage, folder: str) -> int:
    names: Sequence[str] = storage.names(folder)
    return sum(name != _DRIVER for name in names)
