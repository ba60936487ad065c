"""Receives weights from a sender through vLLM's own weight-transfer interface: the workers' and the engine's side.

vLLM ships the backends `nccl` and `ipc`; this module adds `gloo` for main memory. All use vLLM's layer-wise loading: tensors are
collected until a layer with its merged parameters is complete, processed for the layer's kernels, and then written over the served
parameters in place.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from actors.engines.errors import SwapError
from actors.engines.stream import TRANSFER_S, Offer, Transfer, WeightStream, choose_backend, gpu_id
from actors.engines.vllm.gloo import BroadcastGroup
from actors.engines.vllm.served_names import loader_names
from actors.engines.vllm.worker import ServedWeights
from actors.process.network import address_towards, use_interface_of

_interface: Any = importlib.import_module("vllm.distributed.weight_transfer.base")
_factory: Any = importlib.import_module("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
_config: Any = importlib.import_module("vllm.config.weight_transfer").WeightTransferConfig
_nccl: Any = importlib.import_module("vllm.distributed.weight_transfer.nccl_engine")
_reload: Any = importlib.import_module("vllm.model_executor.model_loader.reload")


class GlooWeightTransferEngine(_interface.WeightTransferEngine):
    """vLLM's NCCL backend, unpacked, with gloo instead of NCCL: tensors arrive in main memory on any device."""

    init_info_cls = _nccl.NCCLWeightTransferInitInfo
    update_info_cls = _nccl.NCCLWeightTransferUpdateInfo
    _group: Any = None

    def init_transfer_engine(self, init_info: Any) -> None:
        rank = self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank
        self._group = BroadcastGroup(
            init_info.master_address, init_info.master_port,
            rank=rank + init_info.rank_offset, world_size=init_info.world_size, timeout_s=TRANSFER_S,
        )  # fmt: skip

    def start_weight_update(self) -> None:
        _reload.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Any) -> None:
        self.model.load_weights(self._received(update_info))
        self._group.finish()

    def finish_weight_update(self) -> None:
        _reload.finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._group = None

    def _received(self, update_info: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors as they arrive, each in its own memory, because the loader may keep some."""
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            self._group.broadcast(tensor)
            yield name, tensor


_factory.register_engine("gloo", GlooWeightTransferEngine)


class ReceivedWeights(ServedWeights):
    """Adds the native transport to a worker. `self` is vLLM's worker as well."""

    device: torch.device
    vllm_config: Any
    weight_transfer_engine: Any

    def gpu(self) -> str:
        """The hardware id of the worker's GPU; empty on a CPU."""
        return gpu_id(self.device)

    def receive(self, transfer: Transfer) -> None:
        """Take part in a transfer, with its own backend and group, and load what arrives."""
        worker: Any = self
        model: Any = self.model_runner.get_model()
        names = [*map(loader_names(model), transfer.update_info["names"])]
        if (sender := transfer.init_info.get("master_address")) is not None:
            use_interface_of(address_towards(sender))
        self.weight_transfer_engine = _factory.create_engine(_config(backend=transfer.backend), self.vllm_config, self.device, model)
        try:
            worker.init_weight_transfer_engine(dict(transfer.init_info))
            worker.start_weight_update()
            worker.update_weights({**transfer.update_info, "names": names})
            worker.finish_weight_update()
        finally:
            self.weight_transfer_engine.shutdown()
            self.weight_transfer_engine = None


def receive(stream: WeightStream, offer: Offer, digest: str, rpc: Callable[..., list[Any]]) -> None:
    """Have all workers of an engine receive the offered weights.

    Args:
        stream: the stream to receive from.
        offer: the sender's offer, verified.
        digest: digest of the weights.
        rpc: calls a method of every worker and returns the results in rank order.

    Raises:
        SwapError: the weights did not arrive within `TRANSFER_S` seconds, or the sender or a worker failed. A worker may then still
            wait in a thread of this process, which must end.
    """
    gpus = rpc("gpu")
    backend = choose_backend(offer.gpu, gpus)
    transfer = stream.open(backend, digest, len(gpus))
    deadline = time.monotonic() + TRANSFER_S
    sent = stream.send(transfer)
    received = _in_thread(lambda: rpc("receive", transfer))
    try:
        ray.get(sent, timeout=TRANSFER_S)
        received.result(max(deadline - time.monotonic(), 0))
    except GetTimeoutError as error:
        raise SwapError(f"weights were not sent over {backend} within {TRANSFER_S:g} s") from error
    except RayError as error:
        cause = received.exception(0) if received.done() else None
        raise SwapError(f"weights were not sent over {backend}: {cause or error}") from error
    except TimeoutError as error:
        raise SwapError(f"weights were sent over {backend}, and not loaded within {TRANSFER_S:g} s") from error


def _in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Run a call that cannot be cancelled, so that waiting for it can time out."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
