"""Images on their way to an engine: opened ahead in threads, and what an engine still waits for.

    python -m benchmarks.images --photos FOLDER [--images 1800] [--engine transformers]

`opened` is a look-ahead without an engine. `records` writes questions and answers about a shard of the photos, or of the world `shapes`,
with the embedded model; `up front` opens all images of the shard before the first request, one by one, as it was done before. The folder
is filled up to the number of images with copies (links) of its photos. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from actors import shards
from actors.images import ImageSource
from actors.look_ahead import LookAhead, looking_ahead
from actors.shards import Shard, ShardImages
from benchmarks.common import argument_parser, write_results

WORKERS = (1, 2, 4)
UP_FRONT = 0
"""In place of a number of workers: all images are opened before the first request."""
_NUM_AHEAD = 64
_MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    images: str
    num_workers: int
    num_images: int
    per_second: float
    """Images opened, or records written."""
    waited: float
    """Share of the time in which the engine waited for images."""
    waited_later: float
    """The same without the first batch, for which nothing can be opened ahead."""
    cpu_seconds: float
    peak_mib: float
    """Peak of the process's memory above what it held with its engine loaded."""


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "images.json")
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--images", type=int, default=1800, help="photos of the shard")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, images, num_workers = args.measure.split(",")
        run = opened if what == "opened" else records
        json.dump(run(_source(images, args.photos, args.images), args.engine, int(num_workers)), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as scratch:
        filled = _filled(args.photos, Path(scratch), args.images)
        rows = [_measured("opened", "photos", num, filled, args) for num in WORKERS]
        rows += [_measured("records", images, num, filled, args) for images in ("photos", "shapes") for num in (UP_FRONT, *WORKERS)]
    show(rows)
    write_results(args.out, rows)


def show(rows: list[Row]) -> None:
    table = Table("what", "images", "workers", "per s", "waits", "later", "CPU s", "peak MiB", box=None)
    for row in rows:
        workers = str(row.num_workers or "up front")
        shares = f"{row.waited:.1%}", f"{row.waited_later:.1%}"
        table.add_row(row.what, row.images, workers, f"{row.per_second:.1f}", *shares, f"{row.cpu_seconds:.1f}", f"{row.peak_mib:.0f}")
    Console().print(table)


def _measured(what: str, images: str, num_workers: int, photos: Path, args: argparse.Namespace) -> Row:
    command = [sys.executable, "-m", "benchmarks.images", "--measure", f"{what},{images},{num_workers}", "--photos", str(photos)]
    command += ["--images", str(args.images), "--engine", args.engine]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=1800)
    row = Row(what, images, num_workers, args.images, **json.loads(done.stdout.splitlines()[-1]))
    print(row, flush=True)
    return row


def _filled(photos: Path, folder: Path, num: int) -> Path:
    """A folder of `num` links to the photos in turn."""
    found = sorted(photos.glob("*.jpg"))
    for number, photo in enumerate(islice(cycle(found), num)):
        os.symlink(photo.resolve(), folder / f"{number:06d}.jpg")
    return folder


def _source(images: str, photos: Path, num: int) -> ImageSource:
    from loop.sources.shapes.source import ShapesImages

    return _Links(photos) if images == "photos" else ShapesImages(5, 0.0, 0.5, num)


@dataclass(frozen=True)
class _Links:
    """Photos behind links, which an `ImageFolder` would refuse to follow out of its folder."""

    folder: Path

    def image_ids(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def open(self, image_id: str) -> Image.Image:
        from loop.sources.decoding import decoded

        return decoded(self.folder / image_id, image_id)


# ---- the measurements


def opened(source: ImageSource, engine: str, num_workers: int) -> dict[str, float]:
    """Open all images ahead of a caller that does nothing with them."""
    images, ids = ShardImages(source), source.image_ids()

    def run() -> int:
        with looking_ahead(((one, images.image(one)) for one in ids), num_workers, _NUM_AHEAD) as ahead:
            return sum(ahead.open(one, images.image(one)).width > 0 for one in ids)

    return _cost(run)


def records(source: ImageSource, engine: str, num_workers: int) -> dict[str, float]:
    """Generate one record about each image."""
    from actors.generator import Generator, GeneratorOptions
    from policies.generation.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, QuestionType

    instruction = CANONICAL_INSTRUCTIONS[QuestionType.CONVERSATION]
    tasks = tuple(GenerationTask(one, QuestionType.CONVERSATION, instruction) for one in source.image_ids())
    shard = Shard(1, 0, 7, tasks, source)
    serving, options = _serving(engine, num_workers), GeneratorOptions(max_new_tokens=_MAX_NEW_TOKENS)
    if num_workers == UP_FRONT:
        with patch.object(shards, "_KEPT_BYTES", 1 << 50):
            return _cost(lambda: len(Generator(serving, options, _UpFront(source)).generate(shard)))
    return _cost(lambda: len(Generator(serving, options, ShardImages(source)).generate(shard)))


class _UpFront(ShardImages):
    """Opens an image when a request about it is made."""

    def image(self, image_id: str) -> Any:
        return self.open(image_id)


def _serving(engine: str, num_workers: int) -> Any:
    from actors.engines import EngineSpec, build_engine
    from actors.engines.base import WeightUpdate
    from actors.engines.weights import digest_of, manifest_of, read_checkpoint
    from loop.config.run_config import EMBEDDED_MODEL

    built = build_engine(EngineSpec(engine, str(EMBEDDED_MODEL), {"image_workers": num_workers or 1}))
    weights = read_checkpoint(EMBEDDED_MODEL)
    built.swap(WeightUpdate("r0", digest_of(weights), manifest_of(weights), tensors=weights))
    return built


def _cost(run: Callable[[], int]) -> dict[str, float]:
    """Seconds, waits and memory of a call that returns how much it has done."""
    before = psutil.Process().memory_info().rss
    started, cpu = time.perf_counter(), time.process_time()
    with _waits() as waited_s:
        num = run()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "per_second": num / seconds,
        "waited": sum(waited_s) / seconds,
        "waited_later": sum(waited_s[_NUM_AHEAD:]) / seconds,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": (peak - before) / 2**20,
    }


@contextmanager
def _waits() -> Iterator[list[float]]:
    """Seconds that callers waited for the pixels of each image, ahead of time or up front."""
    waited_s: list[float] = []

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args)
            finally:
                waited_s.append(time.perf_counter() - started)

        return timed

    with patch.object(LookAhead, "open", noted(LookAhead.open)), patch.object(_UpFront, "image", noted(_UpFront.image)):
        yield waited_s


if __name__ == "__main__":
    main()
