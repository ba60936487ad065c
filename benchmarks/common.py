"""What the benchmarks share: their command line, the file of their results, and records of what a method returns."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import psutil

T = TypeVar("T")

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


def timed(seconds: list[float], run: Callable[[], T]) -> T:
    """The result of `run`, whose wall-clock seconds are appended to `seconds`."""
    started = time.perf_counter()
    result = run()
    seconds.append(round(time.perf_counter() - started, 4))
    return result


def cost(run: Callable[[], str]) -> dict[str, Any]:
    """CPU seconds of a call, those of processes that it starts included, and this process's peak of memory above what it held before;
    `detail` is what the call returns."""
    before = psutil.Process().memory_info().rss
    started = cpu_seconds()
    detail = run()
    seconds = cpu_seconds() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"cpu_seconds": seconds, "peak_mib": (peak - before) / 2**20, "detail": detail}


def cpu_seconds() -> float:
    """CPU seconds of this process so far, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


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
