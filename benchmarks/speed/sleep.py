"""Memory that a sleeping engine frees, and the cost of waking it, with the transformers engine on a CPU.

    python -m benchmarks.speed.sleep --sizes seed 500M

Measured is the resident memory of a process that holds only the engine, from one swap through a sleep to the next swap. Waking is a whole
swap: load, verify, allocate, apply, attest.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from actors.engines.transformers import TransformersEngine
from actors.engines.weights import num_bytes_in
from benchmarks.common import argument_parser, write_results
from benchmarks.speed.serving import ANATOMIES, in_child, machine, save_random
from cluster.fleet.weights import prepare
from loop.config.run_config import EMBEDDED_MODEL


@dataclass(frozen=True)
class Slept:
    """One model. Memory in MiB, medians in seconds."""

    size: str
    weights: float
    awake: float
    """Resident memory of the process while serving."""
    asleep: float
    woken: float
    fall_asleep: float
    swap_awake: float
    swap_asleep: float


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "sleep.json")
    parser.add_argument("--sizes", nargs="+", choices=("seed", *ANATOMIES), default=("seed", "500M"))
    parser.add_argument("--nights", type=int, default=2)
    args = parser.parse_args()
    measured = [measure(size, args.nights) for size in args.sizes]
    table = Table("model", "weights", "awake", "asleep", "woken, MiB", "fall asleep", "swap awake", "swap asleep, s", box=None)
    for one in measured:
        sizes = (f"{value:.0f}" for value in (one.weights, one.awake, one.asleep, one.woken))
        table.add_row(one.size, *sizes, *(f"{value:.3f}" for value in (one.fall_asleep, one.swap_awake, one.swap_asleep)))
    Console(width=140).print(table)
    write_results(args.out, {"machine": machine(), "measured": measured})


def measure(size: str, num_nights: int) -> Slept:
    """Measure an engine in its own process."""
    with tempfile.TemporaryDirectory(prefix="vigc-sleep-") as scratch:
        checkpoint = EMBEDDED_MODEL
        if size != "seed":
            checkpoint = Path(scratch) / "model"
            in_child(save_random, checkpoint, ANATOMIES[size])
        return Slept(size, **in_child(measure_nights, checkpoint, num_nights))


def measure_nights(checkpoint: Path, num_nights: int) -> dict[str, Any]:
    """The figures of `Slept` for an engine that sleeps `num_nights` times."""
    engine, process = TransformersEngine(checkpoint), psutil.Process()
    update = prepare(checkpoint, "r0", "checkpoint")
    engine.swap(update)
    swaps = [engine.swap(update).seconds for _ in range(num_nights)]
    resident, nights, wakings = {"awake": process.memory_info().rss}, list[float](), list[float]()
    for _ in range(num_nights):
        started = time.perf_counter()
        engine.sleep()
        nights.append(time.perf_counter() - started)
        resident["asleep"] = process.memory_info().rss
        wakings.append(engine.swap(update).seconds)
        resident["woken"] = process.memory_info().rss
    seconds = {"fall_asleep": median(nights), "swap_awake": median(swaps), "swap_asleep": median(wakings)}
    return {"weights": num_bytes_in(update.manifest) / 2**20, **{name: size / 2**20 for name, size in resident.items()}, **seconds}


if __name__ == "__main__":
    main()
