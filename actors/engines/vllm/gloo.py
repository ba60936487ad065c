"""Broadcasts of tensors over gloo in a process group of their own, which is no part of torch's default group."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import BarrierOptions, BroadcastOptions

_gloo: Any = distributed.ProcessGroupGloo  # its stubs leave out most of it


class BroadcastGroup:
    """Rank 0 sends, the other ranks receive. Listens on one address only, by which the ranks reach one another."""

    def __init__(
        self, address: str, port: int, *, rank: int, world_size: int, timeout_s: float, listener: socket.socket | None = None
    ) -> None:
        """Join the group; returns when every rank has.

        Args:
            address: of rank 0. The loopback address keeps all ranks on loopback.
            port: of rank 0.
            rank: 0 to `world_size` - 1.
            world_size: processes in the group.
            timeout_s: bound on everything that the group does, from now on.
            listener: rank 0's, listening on `address` and `port`; the group takes it over.

        Raises:
            RuntimeError: not all ranks came in time.
        """
        self._deadline = time.monotonic() + timeout_s
        timeout = timedelta(seconds=timeout_s)
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address,
            port,
            is_master=rank == 0,
            wait_for_workers=False,
            timeout=timeout,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        options = _gloo._Options()
        options._timeout = timeout
        options._devices = [_gloo.create_device(hostname=_own_address(address))]
        self._group = _gloo(store, rank, world_size, options)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send a contiguous tensor in main memory, any shape and dtype, or receive into it.

        Raises:
            RuntimeError: a rank has ended, or the group's time is up.
        """
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._wait(self._group.broadcast([tensor.view(-1).view(torch.uint8)], options))

    def finish(self) -> None:
        """Return when every rank has come here: nothing is lost when rank 0 ends after this. Raises what `broadcast` does."""
        self._wait(self._group.barrier(BarrierOptions()))

    def _wait(self, work: distributed.Work) -> None:
        work.wait(timedelta(seconds=max(self._deadline - time.monotonic(), 0.001)))


def _own_address(peer: str) -> str:
    """The address of this machine by which `peer` reaches it. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        unconnected.connect((peer, 1))
        return unconnected.getsockname()[0]
