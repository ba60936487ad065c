"""The rows of an export: columns of the records of committed rounds with their images, in batches.

A batch is small because its images are in memory. Only the columns that a format writes are read, and no `Record` is made of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from actors.images import ImageSource
from loop.export.pictures import Picture, Pictures, read_pictures
from loop.store.commits import RoundCommit
from loop.store.documents import RunInfo
from loop.store.reading import RunReader
from loop.store.selected import record_tables
from policies.columns import compute

_ROWS_PER_BATCH = 64
_WEIGHTS = ("generator_weight_version", "corrector_weight_version")
_LINEAGE_COLUMNS = ("accepted", "trained_on", "reasons", *_WEIGHTS)


@dataclass
class Lineage:
    """Where an export comes from. Records are counted as they pass."""

    run: RunInfo
    commits: Sequence[RoundCommit]
    format: str
    made: Counter[int] = field(default_factory=Counter)
    """Records by round."""
    accepted: Counter[int] = field(default_factory=Counter)
    trained_on: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected records by reason; one may have several."""
    weights: dict[int, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    """Weight versions that generated and corrected, by round."""

    def add(self, round_index: int, records: pa.Table) -> None:
        """Count records of a round, with `_LINEAGE_COLUMNS`."""
        self.made[round_index] += records.num_rows
        self.accepted[round_index] += compute.sum(records["accepted"]).as_py() or 0
        self.trained_on[round_index] += compute.sum(records["trained_on"]).as_py() or 0
        self.reasons.update(counts_of(compute.list_flatten(records["reasons"])))
        pairs = records.select(list(_WEIGHTS)).group_by(list(_WEIGHTS)).aggregate([])
        self.weights[round_index].update(zip(*(pairs[name].to_pylist() for name in _WEIGHTS), strict=True))


def counts_of(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    return {one["values"]: one["counts"] for one in compute.value_counts(values).to_pylist()}


@dataclass(frozen=True)
class Batch:
    """Rows of a round."""

    round: int
    table: pa.Table
    """The columns that were asked for."""
    image_ids: list[str]
    """Of each row, among all images of the run."""
    pictures: list[Picture | None]
    """Of each row; None if it is left out."""

    def rows(self) -> list[dict[str, Any]]:
        """The columns as one dict for each row."""
        return self.table.to_pylist()


@dataclass(frozen=True)
class Rows:
    """The records that a format writes."""

    reader: RunReader
    lineage: Lineage
    images: ImageSource
    image_id_of: Callable[[int, str], str]
    """Maps the round of a record and its `image_id` to the image's id in `images`."""
    pictures: Pictures
    workers: int

    def batches(
        self, columns: Sequence[str], *, accepted_only: bool = True, mask: Callable[[pa.Table], np.ndarray] | None = None
    ) -> Generator[Batch, None, None]:
        """Columns of the records, in order; with a `mask` only of those for which it is true. Every record is added to the lineage. Close
        the iterator if it is not used up.

        Raises:
            DamagedFileError: a part does not match the commit record.
            ExportError: a process that reads images died, or did not read in time.
        """
        slices = self._slices(columns, mask, accepted_only=accepted_only)
        with closing(read_pictures(self.images, ((part, part[2]) for part in slices), self.workers)) as read:
            for (index, table, ids), found in read:
                named = {image_id: self.pictures.named(image_id, picture) for image_id, picture in found.items()}
                yield Batch(index, table, ids, [named[image_id] for image_id in ids])

    def _slices(
        self, columns: Sequence[str], mask: Callable[[pa.Table], np.ndarray] | None, *, accepted_only: bool
    ) -> Iterator[tuple[int, pa.Table, list[str]]]:
        """Round, rows and image ids of each batch."""
        names = list(dict.fromkeys([*columns, "image_id", *_LINEAGE_COLUMNS]))
        for commit in self.lineage.commits:
            for records in record_tables(self.reader, commit, names):
                self.lineage.add(commit.round, records)
                written = records.filter(records["accepted"]) if accepted_only else records
                written = written if mask is None else written.filter(pa.array(mask(written)))
                ids = [self.image_id_of(commit.round, image_id) for image_id in written["image_id"].to_pylist()]
                written = written.select(list(columns))
                for start in range(0, written.num_rows, _ROWS_PER_BATCH):
                    yield commit.round, written.slice(start, _ROWS_PER_BATCH), ids[start : start + _ROWS_PER_BATCH]
