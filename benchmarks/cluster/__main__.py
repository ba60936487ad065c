"""Whole runs on four Ray nodes that share nothing but a network, with the run folder in an S3 server.

    python -m benchmarks.cluster [--only nodes,kills,drivers,store] [--repeats 3] [--out OUT.json]

Every node has a network namespace with an address and a file system of its own; see `benchmarks.cluster.machines`. Linux only, as root.
The exit code is 1 if a digest differs, a record is lost or doubled, or a second driver is not refused.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.cluster.experiments import EXPERIMENTS, Lab, Row, summary
from benchmarks.common import argument_parser, write_results


def main() -> int:
    """Run the chosen experiments, print and store their rows; returns 0 if nothing failed."""
    parser = argument_parser(__doc__, "cluster.json")
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help=f"some of {','.join(EXPERIMENTS)}")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is tried")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the machines end as well
    console = Console(width=None if sys.stdout.isatty() else 140)
    lab = Lab(Path(tempfile.mkdtemp(prefix="vigc-cluster-")))
    console.print(f"logs: {lab.logs}", highlight=False)
    results: dict[str, list[Row]] = {}
    for name in args.only.split(","):
        results[name] = []
        for row in EXPERIMENTS[name](lab, args.repeats):
            results[name].append(row)
            write_results(args.out, results)
            console.print(f"{name}: {row}", highlight=False)
        console.print(summary(name, results[name]), style="bold", highlight=False)
    return 1 if any(_is_wrong(row) for rows in results.values() for row in rows) else 0


def _is_wrong(row: Row) -> bool:
    kept = row.get("same_digest", True) and row.get("second_refused", True) and row.get("first_ended_with", 1) != 0
    return not kept or bool(row.get("lost", 0) + row.get("doubled", 0))


if __name__ == "__main__":
    sys.exit(main())
