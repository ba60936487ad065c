"""POPE on the embedded world: how often a model says yes to absent objects, by shift and by POPE split.

    python -m benchmarks.quality.pope [--model embedded] [--images 100]

Questions use the world's own grammar, without further instructions. For images near shift 0 they are also asked in POPE's standard form,
which the embedded model was never trained on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import argument_parser, write_results
from loop.monitors.progress import RunProgress
from loop.scoring.evaluate import EvaluationSpec, evaluate
from loop.scoring.pope import pope_questions, write_questions
from loop.sources.shapes.source import ShapesImages
from policies.benchmarks.pope import SPLITS

SHIFTS = ((0.0, 0.15), (0.2, 0.4), (0.4, 0.7), (0.7, 1.0))
FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio", "num_unparsable", "num_questions")


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "pope.json")
    parser.add_argument("--model", default="embedded", help="as `vigc evaluate` takes it")
    parser.add_argument("--images", type=int, default=100, help="images per range of shift")
    parser.add_argument("--seed", type=int, default=7001, help="of the worlds and of POPE's draws")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="vigc-pope-") as scratch, RunProgress(Console(stderr=True)) as progress:
        for index, shift in enumerate(SHIFTS):
            data = Path(scratch) / f"{index}.jsonl"
            source = ShapesImages(args.seed + index, *shift, args.images)
            write_questions(data, pope_questions(source.objects(), SPLITS, 6, None, args.seed, short=True))
            for plain in (True, False) if index == 0 else (True,):
                given = EvaluationSpec(args.model, "pope", (data,), "shapes", plain=plain)
                found = evaluate(given, Path(scratch) / f"{index}-{plain}", progress).scores
                about = {"shift": f"{shift[0]:g}-{shift[1]:g}", "form": "plain" if plain else "standard"}
                splits = {"all": found, **found["by_split"]}
                rows += [about | {"split": name} | {figure: of[figure] for figure in FIGURES} for name, of in splits.items()]
    print_rows(rows, Console(width=120))
    write_results(args.out, {"model": args.model, "num_images": args.images, "seed": args.seed, "rows": rows})


def print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """Print one line per range of shift, form and split."""
    names = ("shift", "form", "split", *FIGURES)
    table = Table(*(name.replace("_", " ") for name in names), box=None)
    for row in rows:
        table.add_row(*(f"{row[name]:.1f}" if isinstance(row[name], float) else str(row[name]) for name in names))
    console.print(table)


if __name__ == "__main__":
    main()
