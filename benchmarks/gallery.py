"""The gallery of a large round: what `vigc report` costs, and how long its page takes to open in Chromium.

    python -m benchmarks.gallery [--records 100000] [--samples 500]

The records are those of `benchmarks.scale`, each about a JPEG of 640 x 480 of its own name; a shard shares one file. The command runs in a
process of its own: time and peak memory include its start and its imports. Opening ends when the page has loaded and has been painted.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import argument_parser, write_results
from benchmarks.synthetic import Size, base_shard, commit_of, shard_of
from loop.config.run_config import load_config
from loop.store.run_store import RunInfo, Store
from loop.store.selected import SELECTED, accepted_columns, index_of

_NUM_OPENINGS = 5
_PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"


@dataclass(frozen=True)
class Row:
    """One measurement."""

    num_records: int
    num_samples: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    page_mb: float
    open_seconds: list[float]


def main() -> None:
    """Measure, print, and write the results as JSON."""
    parser = argument_parser(__doc__, "gallery.json")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        row = measured(Path(name), args.records, args.samples)
    print(row)
    write_results(args.out, row)


def measured(folder: Path, num_records: int, num_samples: int) -> Row:
    write_run(folder, Size(num_records, 0, answer_words=40))
    command = [sys.executable, "-m", "loop", "report", str(folder / "run"), "--out", str(folder / "out"), f"--samples={num_samples}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, timeout=600)
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak_mib = used.ru_maxrss / 1024  # of the largest child, which is the command
    page = folder / "out" / "round-0001.html"
    return Row(
        num_records, num_samples, round(seconds, 2), round(used.ru_utime + used.ru_stime, 2), round(peak_mib),
        round(page.stat().st_size / 1e6, 2), openings(page),
    )  # fmt: skip


def write_run(folder: Path, size: Size) -> None:
    """A committed round of synthetic records, and their photos."""
    photos = {"kind": "folder", "path": str(folder / "photos")}
    config = load_config(Path("loop/recipes/shapes.yaml"), []).model_copy(update={"name": "gallery"}).model_dump(mode="json")
    base = base_shard(size.answer_words)
    tables = [shard_of(base, 1, shard) for shard in range(size.num_shards)]
    tables[-1] = tables[-1].slice(0, size.num_records - sum(table.num_rows for table in tables[:-1]))
    with Store.create(folder / "run", RunInfo(run_id="gallery", config={**config, "image_sets": [photos]})).locked() as store:
        store.commit(commit_of(0, store.epoch, []))
        parts = [store.write_part(1, f"records-{shard:05d}", table) for shard, table in enumerate(tables)]
        parts.append(store.write_part(1, SELECTED, index_of(accepted_columns(store, parts, ()))))
        store.commit(commit_of(1, store.epoch, [part.entry for part in parts]))
    for shard, table in enumerate(tables):
        write_photos(folder / "photos", shard, table["image_id"].to_pylist())


def write_photos(folder: Path, seed: int, names: list[str]) -> None:
    """One photo under all names: smooth noise, which compresses about as photos do."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    first, *others = (folder / name for name in names)
    first.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(first, quality=90)
    for other in others:
        os.link(first, other)


def openings(page: Path) -> list[float]:
    """Seconds that the page takes to open, each time in a new context of the browser."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(_NUM_OPENINGS):
            tab = browser.new_context(offline=True).new_page()
            started = time.perf_counter()
            tab.goto(page.as_uri())
            tab.evaluate(_PAINTED)
            found.append(round(time.perf_counter() - started, 3))
            tab.context.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
