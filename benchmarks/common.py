"""What the benchmarks share: their command line, the file of their results, and records of what a method returns."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

RESULTS = Path("benchmarks/results")


def argument_parser(description: str | None, results: str) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is, with `--out` for the file `results` of `RESULTS`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / results, help="JSON to write")
    return parser


def write_results(path: Path, results: Any) -> None:
    """Write results as readable JSON, dataclasses as objects of their fields. The folder is created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, default=asdict) + "\n")


@contextmanager
def recorded(owner: Any, method: str) -> Iterator[list[Any]]:
    """Collects the elements of the lists that a method of `owner` returns within the block."""
    found: list[Any] = []
    call = getattr(owner, method)

    def noted(*args: Any, **kwargs: Any) -> list[Any]:
        results = call(*args, **kwargs)
        found.extend(results)
        return results

    with patch.object(owner, method, noted):
        yield found
