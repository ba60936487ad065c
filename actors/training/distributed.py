"""Sets up the ranks' process group: torch.distributed and DeepSpeed on a store that listens only where it must."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from actors.process.network import INTERFACE_VARIABLES, use_interface_of
from actors.training.job import Hyperparameters, RendezvousError, TrainerError

if TYPE_CHECKING:
    import torch

_BUCKET_ELEMENTS = 200_000_000
_OFFLOADED = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
"""DeepSpeed's keys for the values of `Hyperparameters.offload`."""

COLLECTIVE_TIMEOUT_S = 600.0
"""Longest wait of one rank for the others within a step or an export."""
_REFUSAL = re.compile(r"refused|unreachable|no route to host|timed out connecting|find address|no socket interface", re.IGNORECASE)
_MAX_REASON_CHARS = 400
_REACH_S = 30.0
"""Longest wait of a rank for the connection to rank 0, which listens already."""


def reserve_port(host: str) -> socket.socket:
    """A listening socket on a free port of `host`; holding it until the store takes over keeps others off the port."""
    return socket.create_server((host, 0))


def join_process_group(
    rank: int, world_size: int, host: str, port: int, address: str, listener: socket.socket | None, timeout_s: float
) -> None:
    """Make this process a rank. A process can be in one group only, and stays in it for any number of jobs.

    Args:
        rank: rank of this process.
        world_size: number of ranks.
        host: where rank 0 listens.
        port: port of `listener`.
        address: address of this rank's node, whose interface gloo and NCCL use unless the environment names one. With the loopback
            address for `host` and `address`, all traffic of the group stays on this machine.
        listener: rank 0's socket from `reserve_port`; this takes ownership. `None` on other ranks, and in a group of one.
        timeout_s: longest wait for the other ranks to join.

    Raises:
        TrainerError: this process is already in another group.
        RendezvousError: this rank cannot reach rank 0 or another rank; the message says what to set.
    """
    prepare_deepspeed()
    import deepspeed
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if dist.is_initialized():
        joined = (dist.get_rank(), dist.get_world_size())
        if joined != (rank, world_size):
            raise TrainerError(f"this process is rank {joined[0]} of {joined[1]} and cannot become rank {rank} of {world_size}")
        return
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    backend = "nccl" if os.environ["DS_ACCELERATOR"] == "cuda" else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _refusals_named(f"rank {rank} of {world_size}, at {address}, cannot reach the other ranks, which meet at {host}:{port}"):
        use_interface_of(address)
        if rank:
            _reach(host, port)
        store = HashStore() if world_size == 1 else _store(rank, world_size, host, port, listener, timeout_s)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        dist.barrier()


def _store(rank: int, world_size: int, host: str, port: int, listener: socket.socket | None, timeout_s: float) -> Any:
    from torch._C._distributed_c10d import TCPStore

    return TCPStore(
        host, port, world_size, is_master=rank == 0, timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False, master_listen_fd=listener.detach() if listener is not None else None,
    )  # fmt: skip


def _reach(host: str, port: int) -> None:
    """Raises an `OSError` unless rank 0 can be connected to. The store itself would retry a refused connection for minutes."""
    socket.create_connection((host, port), timeout=_REACH_S).close()


@contextmanager
def _refusals_named(what: str) -> Iterator[None]:
    """Turns the network's refusals into a `RendezvousError`. gloo and NCCL report them as a plain `RuntimeError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not _REFUSAL.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS]
        used = ", ".join(f"{name}={os.environ.get(name, '')}" for name in INTERFACE_VARIABLES)
        raise RendezvousError(
            f"{what}: {reason} (with {used}); set both variables on every node to the interface by which the other nodes reach it, and "
            "open the ports between the nodes"
        ) from error


def sum_over_ranks(tensor: torch.Tensor, world_size: int) -> torch.Tensor:
    """The sum of every rank's tensor, on the CPU; every rank must call this."""
    import torch.distributed as dist

    if world_size == 1:
        return tensor
    summed = tensor.cuda() if dist.get_backend() == "nccl" else tensor
    dist.all_reduce(summed)
    return summed.cpu()


def count_over_ranks(value: int, world_size: int) -> int:
    """The sum of every rank's value; every rank must call this."""
    import torch

    return int(sum_over_ranks(torch.tensor([value]), world_size).item())


def max_over_ranks(value: int, world_size: int) -> int:
    """The largest of all ranks' values; every rank must call this."""
    import torch
    import torch.distributed as dist

    if world_size == 1:
        return value
    largest = torch.tensor([value], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())


def gather_objects(value: Any, world_size: int) -> list[Any]:
    """Every rank's value, in rank order; every rank must call this. Unpickles only data from ranks of this group."""
    import torch.distributed as dist

    if world_size == 1:
        return [value]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, value)
    return gathered


def prepare_deepspeed() -> None:
    """Import DeepSpeed for this machine's accelerator, without its log output, and keep it from compiling anything.

    Raises:
        TrainerError: this release of DeepSpeed chooses its operators differently.
    """
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.utils.logger.setLevel(logging.WARNING)
    accelerator = get_accelerator()
    assert accelerator is not None, "DS_ACCELERATOR names one"
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is not None:
        _disable_operator(builder.NAME)


def _disable_operator(operator: str) -> None:
    """Mark an operator as incompatible, so that DeepSpeed's CPU backend does not use it.

    Only `inference_all_reduce` uses the shared-memory operator; training reduces through torch.distributed either way. Yet
    `init_distributed` compiles it on first use, which takes one to three minutes, and no setting prevents this. DeepSpeed keeps
    the compatibility of operators in one dict and documents that edits to it persist.
    """
    import deepspeed

    compatible = deepspeed.ops.__compatible_ops__
    if operator not in compatible:
        raise TrainerError(
            f"DeepSpeed {deepspeed.__version__} does not list its operator {operator} any more, and would compile it at every new start; "
            "install the release that requirements.lock names"
        )
    compatible[operator] = False


def deepspeed_config(model: Any, hyper: Hyperparameters, micro_batch_size: int, *, varies: bool) -> dict[str, Any]:
    """DeepSpeed's config of a training.

    Args:
        model: whose parameters are trained.
        hyper: of the training.
        micro_batch_size: conversations per forward pass of a rank.
        varies: whether the number of passes varies by step, and the trainer marks the last one.
    """
    import torch

    bucket = min(_BUCKET_ELEMENTS, sum(parameter.numel() for parameter in model.parameters()))
    zero: dict[str, Any] = {
        "stage": hyper.zero_stage,
        "reduce_bucket_size": bucket,  # buffers are allocated in full size: DeepSpeed's default is 2 GB
        "allgather_bucket_size": bucket,
    }
    pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero |= {key: pinned for name, key in _OFFLOADED.items() if name in hyper.offload}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 2 if varies else hyper.gradient_accumulation,  # it only has to expect several
        "gradient_clipping": hyper.max_grad_norm,
        "bf16": {"enabled": hyper.precision == "bf16"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is vectorised on CPUs too; compiling DeepSpeed's takes minutes
        "steps_per_print": None,
    }
