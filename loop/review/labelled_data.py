"""The records that people judged, as data in LLaVA's format: `data.json` beside `images/`, which any set of a config reads as `llava_json`.

Records that people call right are written as they are, and wrong ones with the answer that a person gave. What is left are wrong answers
without a right one, and bad questions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.images import ImageSource
from loop.errors import UserError
from loop.export import whole
from loop.export.pictures import Pictures, read_pictures
from loop.export.writers import COLUMNS, DATA_JSON, IMAGES, ImageFiles, llava_entry
from loop.monitors.mirror.review_queue import LABEL
from loop.review.labels import Reviewed
from loop.sources.routed import RoutedSource, routed
from loop.store.reading import RunReader
from loop.store.selected import record_tables
from policies.columns import compute


@dataclass
class Written:
    """What became of the labelled records."""

    counts: Counter[str] = field(default_factory=Counter)
    """`right`, `corrected`, `without_answer` (wrong, and nobody gave the right one), `bad_question`, `without_image`."""
    bad_images: list[str] = field(default_factory=list)
    """Why images are left out, a line for each."""

    @property
    def num_written(self) -> int:
        return self.counts["right"] + self.counts["corrected"]


def write_labelled(reader: RunReader, labelled: Sequence[Reviewed], images_of: Callable[[int], ImageSource], out: Path) -> Written:
    """Write the labelled records to the folder `out`, which must not exist.

    Raises:
        UserError: `out` exists or cannot be written, or there is nothing to write.
        DamagedFileError: a part of the run does not match its commit record.
    """
    if out.exists():
        raise UserError(f"--out {out} exists, and is never overwritten; choose another folder, or remove it first")
    written = Written()
    rows = list(_rows(reader, labelled, written))
    if not rows:
        raise UserError(f"nothing to write to {out}: of {len(labelled)} labelled records none is right, or wrong with a right answer")
    with whole(out) as folder:
        folder.mkdir()
        entries = list(_entries(rows, images_of, folder / IMAGES, written))
        if not entries:
            raise UserError(f"nothing to write to {out}: no image can be read, the first: {written.bad_images[0]}")
        (folder / DATA_JSON).write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return written


def _rows(reader: RunReader, labelled: Sequence[Reviewed], written: Written) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Round, kind and `COLUMNS` of the records to write, with the answers that people approve."""
    by_id = {one.record_id: one for one in labelled}
    for number in sorted({one.round for one in labelled}):
        for table in record_tables(reader, reader.read_commit(number), COLUMNS):
            for row in table.filter(compute.is_in(table["record_id"], value_set=_ids(by_id))).to_pylist():
                kind, answer = _approved(by_id[row["record_id"]], row["answer"])
                if answer:
                    yield number, kind, {**row, "answer": answer}
                else:
                    written.counts[kind] += 1


def _ids(by_id: Mapping[str, Reviewed]) -> Any:
    import pyarrow as pa

    return pa.array(by_id, pa.string())


def _approved(one: Reviewed, answer: str) -> tuple[str, str]:
    """What a record is counted as, and its right answer; empty if nobody knows it."""
    if one.label == LABEL.right:
        return ("right", answer) if answer else ("without_answer", "")
    if one.label == LABEL.bad_question:
        return "bad_question", ""
    return ("corrected", one.right_answer) if one.right_answer else ("without_answer", "")


def _entries(
    rows: Sequence[tuple[int, str, dict[str, Any]]], images_of: Callable[[int], ImageSource], folder: Path, written: Written
) -> Iterator[dict[str, Any]]:
    """The rows in LLaVA's format; their images are written to `folder`."""
    sources = {number: images_of(number) for number, _, _ in rows}
    names = {number: f"set{list(map(id, sources.values())).index(id(source))}" for number, source in sources.items()}
    images = RoutedSource({names[number]: source for number, source in sources.items()})
    pictures = Pictures(images)
    files = ImageFiles(folder, pictures)
    batches = (((kind, row), [routed(names[number], row["image_id"])]) for number, kind, row in rows)
    with closing(read_pictures(images, batches, 1)) as read:
        for (kind, row), found in read:
            ((image_id, one),) = found.items()
            picture = pictures.named(image_id, one)
            if picture is not None and files.write(image_id, picture):
                written.counts[kind] += 1
                yield llava_entry(row, picture.name)
            else:
                written.counts["without_image"] += 1
    written.bad_images += pictures.bad.values()
