"""The cost of a hot swap, compared with restarting the engine and with copying the bytes, with real vLLM engines in float32.

    python -m benchmarks.speed.swap [--sizes seed 100M 500M] [--transports checkpoint object_store adapter]

A swap is `VllmEngine.swap` of an update that is not preloaded, from verification until the engine is ready to serve. A restart is a fresh
process that imports, constructs the same engine and swaps it to the same checkpoint. Between swaps the engine answers a request, so that
its caches are not empty. Engines of a rolling fleet preload updates while they end their tasks; the same fleet without preloading shows
the time of whole swaps under the same load.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from PIL import Image
from rich.console import Console
from rich.table import Table

from actors.engines import EngineSpec, build_engine
from actors.engines.base import Request, Sampling, WeightUpdate
from actors.engines.weights import digest_of, manifest_of, num_bytes_of, read_checkpoint
from actors.generator import GeneratorOptions
from actors.training.adapters import adapter_of, adapter_state, add_adapters
from actors.training.checkpoint import load_model
from actors.training.job import Lora
from actors.worker import EngineWorker
from benchmarks.speed.serving import ANATOMIES, in_child, machine, save_random, save_shifted
from cluster.fleet.fleet import Fleet
from cluster.fleet.slot import EngineSwap, engine_actor
from cluster.fleet.weights import prepare
from cluster.resources.connect import connected
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.source import ShapesImages
from policies.correction.methods import NoCorrection

SIZES = ("seed", *ANATOMIES)
PHASES = {"read": "load_update", "verify": "verify", "apply": "_apply", "reset caches": "_reset_caches", "attest": "_attest"}
"""Phases of a swap -> the function in `actors.engines.vllm.engine`, or the method of its engine, that performs them."""

ADAPTER_PHASES = {"verify": "_verify_adapter", "apply": "_apply_adapter", "reset caches": "_reset_caches", "attest": "_attest"}
"""The same for swaps of an adapter."""

TRANSPORTS = ("checkpoint", "object_store", "adapter")
"""Not `native`, which has other phases: its weights arrive while they are applied. `adapter` sends VIGC's LoRA variant."""

_NUM_WARM_UPS = 2
_TASKS_PER_ROLL = 16
_IMAGES = ShapesImages(5001, 0.0, 0.6, 32)
"""Images for the engines' work during a rolling swap: each task has one question per image."""


@dataclass(frozen=True)
class Restart:
    """Seconds of a restart at a checkpoint."""

    whole: float
    """From requesting the process until the engine can serve."""
    construct: float
    """Part of `whole`: constructing the engine after vLLM is imported."""
    swap: float
    """Part of `whole`: the first swap."""


@dataclass(frozen=True)
class Swaps:
    """Swaps of one engine to another checkpoint and back, in seconds; medians."""

    transport: str
    num_bytes: int
    """What is sent."""
    whole: float
    slowest: float
    cpu: float
    """CPU seconds of the process."""
    phases: dict[str, float]
    copy: float
    """A plain copy of the same bytes into already touched memory, in the same process between two swaps."""

    applied_per_copied: float
    """Bytes per second while applying weights, relative to the plain copy."""


@dataclass(frozen=True)
class Roll:
    """Seconds of rolling swaps of two working engines; medians over engines and rolls."""

    num_swaps: int
    """Swaps per fleet."""
    swap: float
    """A whole swap in the fleet without preloading, from verification until the engine is ready to serve."""
    out_of_service_without_preloading: float
    """In that fleet, from the end of an engine's last task until it can take the next one."""
    out_of_service: float
    """The same with preloading."""
    out_of_service_per_swap: float


@dataclass(frozen=True)
class Measured:
    """Results for one model."""

    size: str
    restart: Restart
    swaps: list[Swaps]


def main() -> None:
    """Measure, print the tables, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--transports", nargs="+", choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument("--swaps", type=int, default=5, help="of every transport")
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--rolls", type=int, default=5, help="rolling swaps of two engines with the seed model; 0 for none")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/swap.json"))
    args = parser.parse_args()
    measured = [measure(size, args.transports, args.swaps, args.restarts) for size in args.sizes]
    report: dict[str, Any] = {"machine": machine(), "measured": [asdict(one) for one in measured]}
    console = Console(width=140)
    print_tables(measured, console)
    if args.rolls:
        roll = in_child(measure_roll, args.rolls)
        print_roll(roll, console)
        report["roll"] = asdict(roll)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(size: str, transports: Sequence[str], num_swaps: int, num_restarts: int) -> Measured:
    """Measure restarts, then swaps by each transport, each engine in its own process."""
    with tempfile.TemporaryDirectory(prefix="vigc-swap-") as scratch:
        first, second = Path(scratch) / "first", Path(scratch) / "second"
        if size == "seed":
            first = EMBEDDED_MODEL
        else:
            in_child(save_random, first, ANATOMIES[size])
        in_child(save_shifted, first, second)
        update = in_child(prepare, second, "restarted", "checkpoint")
        restarts = [measure_restart(second, update) for _ in range(num_restarts)]
        swaps = [in_child(measure_swaps, (first, second), transport, num_swaps) for transport in transports]
    return Measured(size, sorted(restarts, key=lambda one: one.whole)[len(restarts) // 2], swaps)


def measure_restart(checkpoint: Path, update: WeightUpdate) -> Restart:
    """One restart, timed from outside and from inside."""
    started = time.monotonic()
    construct, swap, ready = in_child(start_engine, checkpoint, update)
    return Restart(ready - started, construct, swap)


def start_engine(checkpoint: Path, update: WeightUpdate) -> tuple[float, float, float]:
    """Seconds to construct an engine after the imports, seconds of its first swap, and the end of that swap on the machine's clock."""
    _engine_module()
    importlib.import_module("vllm").LLM  # noqa: B018 (imported when it is asked for)
    started = time.perf_counter()
    engine = build_engine(EngineSpec("vllm", str(checkpoint)))
    construct = time.perf_counter() - started
    return construct, engine.swap(update).seconds, time.monotonic()


def measure_swaps(checkpoints: tuple[Path, Path], transport: str, num_swaps: int) -> Swaps:
    """Swap one engine between two checkpoints, or between two adapters of the first, after two uncounted swaps."""
    if transport == "adapter":
        lora = Lora()
        updates = adapter_updates(checkpoints[0], lora)
        options: dict[str, Any] = {"adapter_rank": lora.rank, "adapter_targets": lora.targets}
    else:
        updates, options = [prepare(checkpoint, checkpoint.name, transport) for checkpoint in checkpoints], {}
    adapter = updates[0].adapter
    source = read_checkpoint(checkpoints[0]) if adapter is None else adapter.tensors
    engine = build_engine(EngineSpec("vllm", str(checkpoints[0]), options))
    request = Request(Image.new("RGB", (48, 48), (200, 60, 30)), "What can be seen?")
    destination = {name: tensor.clone() for name, tensor in source.items()}
    whole: list[float] = []
    cpu: list[float] = []
    copies: list[float] = []
    with timed_phases(PHASES if adapter is None else ADAPTER_PHASES) as phases:
        for number in range(_NUM_WARM_UPS + num_swaps):
            cpu_started = time.process_time()
            whole.append(engine.swap(updates[number % 2]).seconds)
            cpu.append(time.process_time() - cpu_started)
            started = time.perf_counter()
            for name, tensor in source.items():
                destination[name].copy_(tensor)
            copies.append(time.perf_counter() - started)
            engine.complete([request], Sampling(4))
    return Swaps(
        transport=transport,
        num_bytes=num_bytes_of(source),
        whole=_median(whole),
        slowest=max(whole[_NUM_WARM_UPS:]),
        cpu=_median(cpu),
        phases={phase: _median(seconds) for phase, seconds in phases.items()},
        copy=_median(copies),
        applied_per_copied=_median([copy / apply for copy, apply in zip(copies, phases["apply"], strict=True)]),
    )


def adapter_updates(checkpoint: Path, lora: Lora) -> list[WeightUpdate]:
    """Updates with two random adapters of a checkpoint."""
    import torch

    model, weights = load_model(checkpoint), read_checkpoint(checkpoint)
    add_adapters(model, lora)
    digest, manifest = digest_of(weights), manifest_of(weights)
    updates: list[WeightUpdate] = []
    for name in ("first", "second"):
        state = {key: 0.01 * torch.randn_like(tensor) for key, tensor in adapter_state(model.named_parameters()).items()}
        adapter = adapter_of(state, lora, digest)
        updates.append(WeightUpdate(name, adapter.digest, manifest, adapter=adapter))
    return updates


@contextmanager
def timed_phases(names: Mapping[str, str]) -> Iterator[dict[str, list[float]]]:
    """Records the seconds of every phase (see `PHASES`) of every swap within the block."""
    module = _engine_module()
    seconds: dict[str, list[float]] = {phase: [] for phase in names}
    with ExitStack() as stack:
        for phase, name in names.items():
            owner = module if hasattr(module, name) else module.VllmEngine
            stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), seconds[phase])))
        yield seconds


def _timed(run: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    @wraps(run)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = run(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        return result

    return timed


def _engine_module() -> Any:
    """Imported lazily, so that a process that starts an engine has not paid for the import before."""
    return importlib.import_module("actors.engines.vllm.engine")


def _median(seconds: Sequence[float]) -> float:
    """The median without the warm-up swaps."""
    return median(seconds[_NUM_WARM_UPS:])


def measure_roll(num_rolls: int) -> Roll:
    """Measure two fleets, one after the other: with and without preloading."""
    with tempfile.TemporaryDirectory(prefix="vigc-roll-") as scratch, connected(None, num_cpus=2, temp_dir=None, timeout_s=120.0):
        save_shifted(EMBEDDED_MODEL, Path(scratch) / "shifted")
        updates = [prepare(folder, folder.name, "checkpoint") for folder in (EMBEDDED_MODEL, Path(scratch) / "shifted")]
        preloaded, whole = (_rolled(kind, updates, num_rolls) for kind in (EngineWorker, _WorkerWithoutPreloading))
    swap = median(one.attestation.seconds for one in whole)
    out_of_service = median(one.out_of_service_s for one in preloaded)
    return Roll(
        num_swaps=len(preloaded),
        swap=swap,
        out_of_service_without_preloading=median(one.out_of_service_s for one in whole),
        out_of_service=out_of_service,
        out_of_service_per_swap=out_of_service / swap,
    )


class _WorkerWithoutPreloading(EngineWorker):
    """A worker that does not preload updates."""

    def preload(self, update: WeightUpdate) -> None:
        """Does nothing: all work is left to the swap."""


def _rolled(kind: type[EngineWorker], updates: Sequence[WeightUpdate], num_rolls: int) -> list[EngineSwap]:
    """The swaps of a fleet of two that keeps answering questions while it is rolled between two updates."""
    worker = engine_actor(kind, num_cpus=1, max_restarts=0)
    spec = EngineSpec("vllm", str(EMBEDDED_MODEL.absolute()))
    questions = _IMAGES.questions(_IMAGES.num_images, seed=0)
    swaps: list[EngineSwap] = []
    fleet = Fleet(
        lambda _: worker.remote(spec, GeneratorOptions(), NoCorrection()), 2,
        task_timeout_s=300.0, start_timeout_s=300.0, swap_timeout_s=60.0,
    )  # fmt: skip
    fleet.start(updates[0])
    for number in range(1, num_rolls + 1):
        run = fleet.run(range(_TASKS_PER_ROLL), lambda engine, _: engine.evaluate.remote(_IMAGES, questions, 64))
        for done, _ in enumerate(run):
            if done == _TASKS_PER_ROLL // 4:
                fleet.roll(updates[number % 2])
        swaps += fleet.complete_roll()
    fleet.shutdown(60.0)
    return swaps


def print_roll(roll: Roll, console: Console) -> None:
    table = Table(
        "rolling, two engines",
        "swaps",
        "whole swap, ms",
        "out of service, ms",
        "with preloading, ms",
        "with preloading / whole swap",
        box=None,
    )
    times = (f"{1e3 * seconds:.1f}" for seconds in (roll.swap, roll.out_of_service_without_preloading, roll.out_of_service))
    table.add_row("seed", str(roll.num_swaps), *times, f"{roll.out_of_service_per_swap:.2f}")
    console.print(table)


def print_tables(measured: Sequence[Measured], console: Console) -> None:
    restarts = Table("model", "restart, s", "without imports, s", "swap, ms", "slowest, ms", "restart / swap", "without imports", box=None)
    times = ("swap", "CPU", *PHASES, "copy")
    phases = Table("model", "transport", "MB", *(f"{name}, ms" for name in times), "apply / copy, bytes/s", box=None)
    for one in measured:
        restart, swap = one.restart, one.swaps[0]
        warm = restart.construct + restart.swap
        restarts.add_row(
            one.size, f"{restart.whole:.1f}", f"{warm:.1f}", f"{1e3 * swap.whole:.0f}", f"{1e3 * swap.slowest:.0f}",
            f"{restart.whole / swap.whole:.0f}x", f"{warm / swap.whole:.0f}x",
        )  # fmt: skip
        for swap in one.swaps:
            seconds = (swap.whole, swap.cpu, *(swap.phases.get(phase, 0.0) for phase in PHASES), swap.copy)
            shown = (f"{1e3 * one:.1f}" for one in seconds)
            phases.add_row(one.size, swap.transport, f"{swap.num_bytes / 1e6:.1f}", *shown, f"{swap.applied_per_copied:.2f}")
    console.print(restarts)
    console.print(phases)


if __name__ == "__main__":
    import_module("benchmarks.speed.swap").main()  # imported by name, so that other processes can find its actor classes
