"""The sender of the native transport: an actor that holds a checkpoint's tensors, on its GPU if it has one, and sends them to
engine workers. It is vLLM's trainer side; `actors.engines.vllm.native` is the workers' side, `actors.engines.stream` the protocol."""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import ray
import ray.util
import torch
from torch.multiprocessing.reductions import reduce_tensor

from actors.engines.errors import WeightMismatchError
from actors.engines.stream import TRANSFER_S, Offer, Transfer, gpu_id
from actors.engines.vllm.gloo import BroadcastGroup
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from actors.folders import Folder, local_path
from actors.process.network import LOOPBACK, use_interface_of

_FORCED_END_S = TRANSFER_S + 30.0


class Sender:
    """Runs as a threaded Ray actor, started by `cluster.fleet.weights`. Each transfer has its own thread and process group, so that
    engines are served concurrently and a lost engine does not block others. Every method may be called again."""

    def __init__(self, checkpoint: Folder) -> None:
        torch.set_num_threads(1)
        self._checkpoint = checkpoint
        self._reading = threading.Lock()
        self._listeners: dict[int, socket.socket] = {}

    def offer(self, digest: str) -> Offer:
        """Describe the weights, if their digest is `digest`.

        Raises:
            WeightMismatchError: the digest differs, or the checkpoint cannot be read.
        """
        return Offer(manifest_of(self._prepared(digest)), gpu_id(self._device))

    def fetch(self, names: set[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names, in main memory.

        Raises:
            WeightMismatchError: the checkpoint cannot be read.
        """
        return {name: tensor.cpu() for name, tensor in self._tensors().items() if name in names}

    def open(self, backend: str, digest: str, num_workers: int) -> Transfer:
        """Prepare a transfer to the workers of one engine. Listens on loopback only if Ray has just this machine. Raises what `offer`
        does, since the actor may have restarted after `offer`."""
        tensors = self._prepared(digest)
        manifest = manifest_of(tensors)
        described = {
            "names": list(manifest),
            "dtype_names": [spec.dtype for spec in manifest.values()],
            "shapes": [list(spec.shape) for spec in manifest.values()],
        }
        if backend == "ipc":
            handles = [{gpu_id(self._device): reduce_tensor(tensor)[1]} for tensor in tensors.values()]
            return Transfer(backend, {"packed": False}, described | {"ipc_handles": handles}, None)
        address = LOOPBACK if sum(node["Alive"] for node in ray.nodes()) == 1 else ray.util.get_node_ip_address()
        listener = socket.create_server((address, 0))
        port = listener.getsockname()[1]
        self._listeners[port] = listener
        init_info = {"master_address": address, "master_port": port, "rank_offset": 1, "world_size": num_workers + 1, "packed": False}
        return Transfer(backend, init_info, described, port)

    def send(self, transfer: Transfer) -> None:
        """Send all tensors, in the order of the offer, once to each worker. Returns when they have arrived.

        Raises:
            RuntimeError: a worker did not join, is lost, or did not receive in time.
        """
        if transfer.port is None:  # the workers read them from this process's memory
            return
        listener = self._listeners.pop(transfer.port)
        # NCCL waits forever for a lost peer and cannot be cancelled: then this process exits, and Ray restarts it.
        forced_end = threading.Timer(_FORCED_END_S, os._exit, (1,))
        forced_end.start()
        try:
            if transfer.backend == "nccl":
                _broadcast_over_nccl(self._tensors(), transfer.init_info, listener)
            else:
                self._broadcast_over_gloo(transfer.init_info, listener)
        finally:
            forced_end.cancel()

    def _broadcast_over_gloo(self, init_info: Mapping[str, Any], listener: socket.socket) -> None:
        group = BroadcastGroup(
            init_info["master_address"], init_info["master_port"], rank=0, world_size=init_info["world_size"],
            timeout_s=TRANSFER_S, listener=listener,
        )  # fmt: skip
        for tensor in self._tensors().values():
            group.broadcast(tensor.cpu().contiguous())
        group.finish()

    def _prepared(self, digest: str) -> Mapping[str, torch.Tensor]:
        tensors = self._tensors()
        if self._digest != digest:
            raise WeightMismatchError(f"the sender of {self._checkpoint} holds weights with digest {self._digest}; {digest} was prepared")
        return tensors

    def _tensors(self) -> Mapping[str, torch.Tensor]:
        with self._reading:
            return self._held

    @cached_property
    def _held(self) -> dict[str, torch.Tensor]:
        """Read once, and sorted by name, so that the members of a merged parameter are adjacent."""
        tensors = read_checkpoint(local_path(self._checkpoint))
        return {name: tensors[name].to(self._device).contiguous() for name in sorted(tensors)}

    @cached_property
    def _digest(self) -> str:
        return digest_of(self._held)

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _broadcast_over_nccl(tensors: Mapping[str, torch.Tensor], init_info: Mapping[str, Any], listener: socket.socket) -> None:
    """vLLM's `nccl_common.trainer_init` and `_broadcast`, with our own listener and a time limit on the rendezvous."""
    use_interface_of(init_info["master_address"])
    communicators: Any = importlib.import_module("vllm.distributed.device_communicators.pynccl")
    groups: Any = importlib.import_module("vllm.distributed.utils")
    nccl: Any = importlib.import_module("vllm.utils.nccl")
    group = groups.StatelessProcessGroup.create(
        init_info["master_address"], init_info["master_port"], 0, init_info["world_size"],
        store_timeout=int(TRANSFER_S), listen_socket=listener,
    )  # fmt: skip
    with nccl.unpinned_nccl_env():
        communicator = communicators.PyNcclCommunicator(group, device=torch.cuda.current_device())
    for tensor in tensors.values():
        communicator.broadcast(tensor, src=0, stream=torch.cuda.current_stream())
    torch.cuda.current_stream().synchronize()
    communicator.destroy()
