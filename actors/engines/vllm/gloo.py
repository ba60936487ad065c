"""Broadcasts tensors over gloo in a separate process group, independent of torch's default group."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import BarrierOptions, BroadcastOptions

from actors.process.network import address_towards

_gloo: Any = distributed.ProcessGroupGloo  # its stubs leave out most of it


class BroadcastGroup:
    """Rank 0 sends, the other ranks receive. Listens only on the address by which the ranks reach each other."""

    def __init__(
        self, address: str, port: int, *, rank: int, world_size: int, timeout_s: float, listener: socket.socket | None = None
    ) -> None:
        """Join the group; returns when every rank has.

        Args:
            address: address of rank 0. The loopback address keeps all ranks on loopback.
            port: port of rank 0.
            rank: 0 to `world_size` - 1.
            world_size: processes in the group.
            timeout_s: time limit for everything that the group does, from now on.
            listener: rank 0's socket, listening on `address` and `port`; the group takes ownership.

        Raises:
            RuntimeError: not all ranks joined in time.
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
        options._devices = [_gloo.create_device(hostname=address_towards(address))]
        self._group = _gloo(store, rank, world_size, options)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send a contiguous tensor in main memory, of any shape and dtype, or receive into it.

        Raises:
            RuntimeError: a rank has ended, or the group has timed out.
        """
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._wait(self._group.broadcast([tensor.view(-1).view(torch.uint8)], options))

    def finish(self) -> None:
        """Wait for every rank, so that nothing is lost when rank 0 ends afterwards. Raises what `broadcast` does."""
        self._wait(self._group.barrier(BarrierOptions()))

    def _wait(self, work: distributed.Work) -> None:
        work.wait(timedelta(seconds=max(self._deadline - time.monotonic(), 0.001)))
