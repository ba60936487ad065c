"""How much easier a teacher's view is to read: exact accuracy of one model on raw images and on every view.

    python -m benchmarks.quality.views [--model FOLDER] [--questions 400]

The loop has to distil this difference into the weights: the student is trained and evaluated on raw images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from actors.evaluator import Evaluator
from actors.views import View, raw
from loop.config.run_config import EMBEDDED_MODEL
from loop.models.seed.curriculum import served
from loop.sources.shapes.source import ShapesImages
from loop.sources.shapes.views import flat_background
from policies.metrics import share

SETS = ("0-0.15", "0.2-0.4", "0.4-0.7", "0.7-1.0")


@dataclass(frozen=True)
class Viewed:
    """A source seen through a view."""

    source: ShapesImages
    view: View

    def image_ids(self) -> list[str]:
        return self.source.image_ids()

    def open(self, image_id: str) -> Image.Image:
        return self.view(self.source.open(image_id))


def main() -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument("--questions", type=int, default=400)
    args = parser.parse_args()
    evaluator = Evaluator(served(args.model))
    table = Table("view", *SETS, box=None)
    for view in (raw, flat_background):
        row = []
        for number, name in enumerate(SETS):
            low, high = map(float, name.split("-"))
            source = ShapesImages(901 + number, low, high, args.questions)
            predictions = evaluator.evaluate(Viewed(source, view), source.questions(args.questions, seed=0), max_new_tokens=64)
            row.append(f"{100 * share(one.correct for one in predictions):.1f}")
        table.add_row(view.__name__, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
