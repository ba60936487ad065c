"""Exports, as `benchmarks.scale` measures them: many records about one small image, and records that are each about a photo."""

from __future__ import annotations

import io
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from actors.images import ImageSource
from benchmarks.common import cost
from benchmarks.synthetic import Size, base_shard, commit_of, last_parts, shard_of
from loop.export import export
from loop.sources.folder import ImageFolder
from loop.store.run_store import RunInfo, Store
from loop.store.selected import SELECTED, accepted_columns, index_of

_NUM_SHARDS_OF_PHOTOS = 2


def export_records(folder: Path, size: Size, format: str) -> dict[str, Any]:
    """Export the last round, with all records about one image, in one process."""
    index = size.num_earlier_rounds + 1
    with Store.open(folder / "run").locked() as store:
        selected = store.finished_part(index, SELECTED)
        assert selected is not None, "an earlier measurement has written it"
        store.commit(commit_of(index, store.epoch, [part.entry for part in (*last_parts(store, size), selected)]))
    return cost(partial(_exported, store, index, format, folder / format, OnePhoto(), workers=1))


def export_photos(folder: Path, size: Size, workers: int) -> dict[str, Any]:
    """Export a round of records that are each about a JPEG of 640 x 480, read in `workers` processes."""
    photos = folder / "photos"
    if not photos.exists():
        _write_photos(photos, size)
    with Store.create(folder / f"photos-{workers}", RunInfo(run_id="photos", config={})).locked() as store:
        parts = [store.write_part(0, f"records-{shard:05d}", table) for shard, table in enumerate(_shards(size))]
        selected = store.write_part(0, SELECTED, index_of(accepted_columns(store, parts, ())))
        store.commit(commit_of(0, store.epoch, [part.entry for part in (*parts, selected)]))
    return cost(partial(_exported, store, 0, "llava", folder / f"photos-out-{workers}", ImageFolder(photos), workers))


def _exported(store: Store, index: int, format: str, out: Path, images: ImageSource, workers: int) -> str:
    started, of_this_process = time.perf_counter(), time.process_time()
    report = export(store, index, format, out, images, _one_photo if isinstance(images, OnePhoto) else _own_photo, workers=workers)
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return (
        f"{report.num_records:,} records, {num_bytes / 2**20:,.0f} MiB, {time.process_time() - of_this_process:.1f} CPU s in the main "
        f"process, {time.perf_counter() - started:.0f} s wall"
    )


def _one_photo(round_index: int, image_id: str) -> str:
    return "photo"


def _own_photo(round_index: int, image_id: str) -> str:
    return image_id


class OnePhoto:
    """A small image."""

    def __init__(self) -> None:
        sink = io.BytesIO()
        self._image = Image.new("RGB", (8, 8))
        self._image.save(sink, "JPEG")
        self._data = sink.getvalue()

    def image_ids(self) -> list[str]:
        return ["photo"]

    def open(self, image_id: str) -> Image.Image:
        return self._image

    def read_file(self, image_id: str) -> tuple[str, bytes]:
        return "photo.jpg", self._data


def _shards(size: Size) -> list[pa.Table]:
    base = base_shard(size.answer_words)
    return [shard_of(base, 0, shard) for shard in range(_NUM_SHARDS_OF_PHOTOS)]


def _write_photos(folder: Path, size: Size) -> None:
    """A photo for each record: noise that is smooth, so that it compresses about as photos do."""
    draw = np.random.default_rng(0)
    for image_id in (image_id for table in _shards(size) for image_id in table["image_id"].to_pylist()):
        (folder / image_id).parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / image_id, quality=90)
