"""The cost of correction and what it removes, side by side in one run.

    python -m benchmarks.quality.correction [--images 100] [--qformer FOLDER]

Cost: VIGC's published inference (`benchmarks.quality.published`) compared with ours, for the embedded LLaVA and for a small InstructBLIP
(trained first, which takes a few minutes, unless a folder is given). Truth: how much of the seed model's output is wrong on images it was
never trained on, after VIG, after VIC and after grounded VIC, and what chains of filters keep of it, also as a plot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import argument_parser, write_results
from benchmarks.quality.correction_truth import Hallucination, Kept, measure
from benchmarks.speed.correction_speed import Comparison, compare
from loop.config.run_config import EMBEDDED_MODEL
from loop.models.seed.instructblip import INSTRUCTBLIP
from loop.models.seed.qformer import make_qformer_model
from loop.sources.shapes.source import ShapesImages

SHIFTS = ("0.4-0.7", "0.7-1.0")


def main() -> None:
    """Measure, print the tables, write them as JSON, and plot the chains."""
    parser = argument_parser(__doc__, "correction.json")
    parser.add_argument("--images", type=int, default=100, help="images for the comparison of costs, three records each")
    parser.add_argument("--truth-images", type=int, default=500, help="images per range of shift, two records each")
    parser.add_argument("--qformer", type=Path, help="a small InstructBLIP that `make_qformer_model` has made")
    parser.add_argument("--plot", type=Path, default=Path("docs/filters.png"))
    args = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="vigc-correction-") as scratch:
        qformer = args.qformer or Path(scratch) / "instructblip"
        if args.qformer is None:
            console.print(f"InstructBLIP trained: {make_qformer_model(INSTRUCTBLIP, qformer, seed=17)}")
        costs = [
            compare("LLaVA", EMBEDDED_MODEL, ShapesImages(5001, 0.0, 0.6, args.images)),
            compare("InstructBLIP", qformer, ShapesImages(5001, 0.0, 0.15, args.images)),
        ]
    print_costs(costs, console)
    measured = [measure(shift, args.truth_images) for shift in SHIFTS]
    truths, chains = ([row for rows in part for row in rows] for part in zip(*measured, strict=True))
    print_truths(truths, console)
    print_chains(chains, console)
    write_results(args.out, {"costs": costs, "hallucinations": truths, "chains": chains})
    plot(chains, args.plot)


def print_costs(costs: Sequence[Comparison], console: Console) -> None:
    table = Table("model", "way", "VIG, s", "VIC, s", "looks/record", "tokens thrown away", "faster: VIC, whole", "equal", box=None)
    for cost in costs:
        for way, measured in (("published", cost.published), ("ours", cost.ours)):
            seconds = f"{min(measured.generate_seconds):.2f}", f"{min(measured.correct_seconds):.2f}"
            looks = f"{measured.images_seen / cost.num_records:.2f}"
            wasted = f"{1 - measured.kept_tokens / measured.decoded_tokens:.1%}"
            compared = (f"{cost.speedup:.1f}x, {cost.whole_speedup:.1f}x", f"{cost.num_equal}/{cost.num_compared}") if way == "ours" else ()
            table.add_row(cost.model, way, *seconds, looks, wasted, *compared)
    console.print(table)


def print_truths(rows: Sequence[Hallucination], console: Console) -> None:
    table = Table("shift", "way", "answers", "with a contradicted statement", "objects not there", "exactly right", box=None)
    for row in rows:
        table.add_row(
            row.shift, row.way, str(row.num_answers), *(f"{share:.1%}" for share in (row.contradicted, row.objects_not_there, row.exact))
        )
    console.print(table)


def print_chains(rows: Sequence[Kept], console: Console) -> None:
    table = Table("shift", "chain", "kept of the parsable", "exactly right", box=None)
    for row in rows:
        table.add_row(row.shift, row.chain, f"{row.kept:.1%}", f"{row.exact:.1%}")
    console.print(table)


def plot(rows: Sequence[Kept], path: Path) -> None:
    """Plot share kept against share right, one panel per range of shift."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    for axes, shift in zip(figure.subplots(1, len(SHIFTS), sharey=True), SHIFTS, strict=True):
        for number, row in enumerate(one for one in rows if one.shift == shift):
            axes.scatter(100 * row.kept, 100 * row.exact, color=f"C{number}", label=row.chain)
        axes.set_xlabel("kept, % of the parsable records")
        axes.set_title(f"shift {shift}", fontsize=10)
        axes.grid(linewidth=0.3)
    figure.axes[0].set_ylabel("exactly right, % of the kept")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
