"""Training samples in files: ranks map them into memory and read the rows that they need.

    FOLDER/samples.arrow    the distinct samples, an Arrow IPC file of `SCHEMA`
    FOLDER/order.npy        int32, the number of each sample of the training set
    FOLDER/lengths.npy      int32, the characters of each sample of the training set

A training set that repeats samples, or draws few of many, costs four bytes a repetition, and a rank holds none of it in its own memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from actors.folders import Folder, local_path
from policies.records import TrainingSample

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("users", pa.list_(pa.string())),
        ("assistants", pa.list_(pa.string())),
        ("origin", pa.string()),
        ("question_type", pa.string()),
        ("further_images", pa.list_(pa.string())),
    ]
)
_SAMPLES, _ORDER, _LENGTHS = "samples.arrow", "order.npy", "lengths.npy"
_IMAGE_CHARACTERS = 2000
"""What an image counts for when conversations of similar length are grouped: LLaVA-1.5's has 576 tokens."""
_ROWS_PER_BATCH = 4096
"""Samples of every record batch but the last."""


class StoredSamples(Sequence[TrainingSample]):
    """The samples in a folder that `write_samples` made. Pickling it takes no data along."""

    def __init__(self, folder: Folder, digest: str) -> None:
        self.folder = folder
        self.digest = digest
        """SHA-256 of the files."""

    def __reduce__(self) -> tuple[type[StoredSamples], tuple[Folder, str]]:
        return StoredSamples, (self.folder, self.digest)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> TrainingSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingSample]: ...
    def __getitem__(self, index: int | slice) -> TrainingSample | list[TrainingSample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        batch, place = divmod(int(self._order[index]), _ROWS_PER_BATCH)
        (row,) = self._batches[batch].slice(place, 1).to_pylist()
        turns = tuple(zip(row.pop("users"), row.pop("assistants"), strict=True))
        return TrainingSample(turns=turns, further_images=tuple(row.pop("further_images")), **row)

    @cached_property
    def _files(self) -> Path:
        return local_path(self.folder)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each sample, int32."""
        return np.load(self._files / _LENGTHS, mmap_mode="r")

    @cached_property
    def _order(self) -> np.ndarray:
        return np.load(self._files / _ORDER, mmap_mode="r")

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        file = pa.ipc.open_file(pa.memory_map(str(self._files / _SAMPLES)))
        return [file.get_batch(number) for number in range(file.num_record_batches)]


def write_samples(folder: Path, samples: Iterable[TrainingSample], order: np.ndarray) -> StoredSamples:
    """Write a training set into `folder`; the same arguments give the same bytes.

    Args:
        folder: created if necessary; files of an earlier call are replaced.
        samples: the distinct samples; they are consumed one by one.
        order: number of each sample of the training set, [samples of the set].
    """
    folder.mkdir(parents=True, exist_ok=True)
    lengths, remaining = list[int](), iter(samples)
    with pa.OSFile(str(folder / _SAMPLES), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as file:
        while batch := list(islice(remaining, _ROWS_PER_BATCH)):
            lengths += map(length_of, batch)
            file.write_batch(_record_batch(batch))
    np.save(folder / _ORDER, order.astype(np.int32))
    np.save(folder / _LENGTHS, np.array(lengths, dtype=np.int32)[order])
    return StoredSamples(folder, _digest(folder))


def length_of(sample: TrainingSample) -> int:
    """Characters of a conversation, beyond those that its first image stands for; samples of similar length are batched together."""
    return sum(len(user) + len(assistant) for user, assistant in sample.turns) + _IMAGE_CHARACTERS * (len(sample.images) - 1)


def lengths_of(samples: Sequence[TrainingSample]) -> Sequence[int] | np.ndarray:
    """`length_of` each sample."""
    return samples.lengths if isinstance(samples, StoredSamples) else [length_of(sample) for sample in samples]


def identity_of(samples: Sequence[TrainingSample]) -> Any:
    """What samples teach as JSON, or its digest, for the fingerprint of a job."""
    if isinstance(samples, StoredSamples):
        return samples.digest
    return [[sample.image_id, sample.turns, *sample.further_images] for sample in samples]


def _record_batch(samples: Sequence[TrainingSample]) -> pa.RecordBatch:
    columns = [
        [sample.image_id for sample in samples],
        [[user for user, _ in sample.turns] for sample in samples],
        [[assistant for _, assistant in sample.turns] for sample in samples],
        [sample.origin for sample in samples],
        [sample.question_type for sample in samples],
        [sample.further_images for sample in samples],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (_SAMPLES, _ORDER):
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
