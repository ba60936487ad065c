"""Fault injection into real runs: drivers killed at random moments, actors and services killed and stopped, hostile input.

    python -m benchmarks.chaos [--only drivers,actors,fuzz] [--kills 200] [--matrix-repeats 3] [--seed 0] [--out OUT.json]
    python -m benchmarks.chaos --only drivers --stale-records correct     in runs with `overlap: 1`
    python -m benchmarks.chaos --merge A.json B.json [--out BOTH.json]

Every run is `python -m loop` as a user starts it (transformers engine, embedded model, local Ray); faults are signals sent from outside.
The exit code is 1 if a record is lost or duplicated, a digest differs, a session hangs, or anything is left behind.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.chaos.actors import matrix, try_matrix
from benchmarks.chaos.drivers import campaigns, undisturbed
from benchmarks.chaos.fuzz import fuzz
from benchmarks.chaos.results import Results
from benchmarks.chaos.table import failures, print_tables

PARTS = ("drivers", "actors", "fuzz")
_FUZZ_S = 1800.0
_LOG_WIDTH = 140
_SHOWN = (
    "cell", "verdict", "campaign", "session", "aim", "round", "stage", "after_s", "work_after_s", "wall_s", "ending", "digest_equal",
    "lost", "doubled", "shards_redone", "finished_redone", "leftovers", "scratch", "problems", "inputs", "failed",
)  # fmt: skip
"""What to print for an event during a campaign."""


def main() -> int:
    """Run the requested campaigns and print the tables; returns 0 if nothing failed."""
    args = _arguments()
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    if args.merge:
        results = Results.read(args.merge)
        if args.out:
            results.write(args.out)
    else:
        results = Results(args.out)
        folder = Path(tempfile.mkdtemp(prefix="vigc-chaos-"))
        try:
            _run(args, folder, results, console)
        finally:
            print_tables(console, results)
        if not failures(results):
            shutil.rmtree(folder)
        else:
            console.print(f"the runs that went wrong are in {folder}", highlight=False)
    if args.merge:
        print_tables(console, results)
    return 1 if failures(results) else 0


def _run(args: argparse.Namespace, folder: Path, results: Results, console: Console) -> None:
    began = time.monotonic()

    def is_over() -> bool:
        used_up = args.budget_s is not None and time.monotonic() - began > args.budget_s
        if used_up:
            console.print(f"the budget of {args.budget_s:g} s is used up: what is left is not tried", highlight=False)
        return used_up

    def record(kind: str, event: dict[str, Any]) -> None:
        results.record(kind, event)
        console.print(f"{time.monotonic() - began:6.0f} s  {kind:11s} {_brief(event)}", highlight=False, markup=False, soft_wrap=True)

    if {"drivers", "actors"} & set(args.only):
        world, reference = undisturbed(folder / "drivers", record, **_overlap(args.stale_records))
        if "drivers" in args.only:
            campaigns(world, reference, args.kills, args.campaign_kills, args.seed, record, is_over)
        if "actors" in args.only:
            try_matrix(folder / "actors", reference, matrix(args.cells), args.matrix_repeats, record, is_over)
    if "fuzz" in args.only:
        fuzz(record, _FUZZ_S)


def _overlap(stale_records: str | None) -> dict[str, Any]:
    """The changes of the config for runs with `overlap: 1`."""
    if stale_records is None:
        return {}
    actors = {"num_engines": 2, "trainer_ranks": 1, "colocated": False, "num_cpus": 4}
    return {"rounds": 3, "overlap": 1, "stale_records": stale_records, "cluster": actors}


def _brief(event: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_short(event[name])}" for name in _SHOWN if event.get(name) not in (None, [], ""))


def _short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--kills", type=int, default=200, help="kills of the driver")
    parser.add_argument("--campaign-kills", type=int, default=10, help="kills of one run at most")
    parser.add_argument("--matrix-repeats", type=int, default=3, help="times that every cell of the actor matrix is tried")
    parser.add_argument("--cells", default=".", help="pattern of the cells of the actor matrix to try, or `telling`")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--stale-records", choices=("keep", "correct", "drop"), help="kill drivers of runs with overlap 1")
    parser.add_argument("--budget-s", type=float, default=None, help="no new fault after so many seconds")
    parser.add_argument("--out", type=Path, default=None, help="JSON of every fault, written after each")
    parser.add_argument("--merge", type=Path, nargs="+", default=None, help="print the table of these results instead")
    args = parser.parse_args()
    if args.stale_records and "actors" in args.only:
        parser.error("--stale-records is for killed drivers; add --only drivers")
    return args


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown {sorted(unknown)}; choose among {','.join(PARTS)}")
    return parts


if __name__ == "__main__":
    sys.exit(main())
