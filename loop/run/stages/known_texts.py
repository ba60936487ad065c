"""Questions and answers that a record may repeat: those of the seed data, of earlier rounds, and of its own round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice
from typing import Protocol

import numpy as np
import pyarrow as pa

from loop.setup.routing import seed_image_id
from loop.sources.routed import unrouted
from loop.store.selected import SelectedRows
from policies.filtering.near_duplicates import TextKeys, TextSimilarity, hashes_of
from policies.filtering.stored_keys import keys_of
from policies.generation.knowledge import pairs_of
from policies.records import DUPLICATE_KEYS, TrainingSample

_PAIRS_AT_ONCE = 4096


class KnownTexts(Protocol):
    """Texts of one origin, in a fixed order."""

    def __len__(self) -> int: ...

    def keyed(self) -> Iterator[tuple[TextKeys, np.ndarray]]:
        """The keys of all texts with the locations of their images as numbers, uint64, piece by piece."""
        ...

    def read(self, columns: Sequence[str], rows: np.ndarray) -> Iterator[pa.Table]:
        """`question`, `answer` or `record_id` of ascending, distinct rows, piece by piece. A sample of the seed data is called by the first
        of its images."""
        ...


@dataclass(frozen=True)
class RoundTexts:
    """The texts of rows of a round. Their keys are stored with them."""

    rows: SelectedRows
    location: Callable[[str], str]
    """Of an image of the round."""

    def __len__(self) -> int:
        return len(self.rows)

    def keyed(self) -> Iterator[tuple[TextKeys, np.ndarray]]:
        for table in self.rows.read(("image_id", DUPLICATE_KEYS)):
            yield keys_of(table[DUPLICATE_KEYS]), hashes_of(map(self.location, table["image_id"].to_pylist()))

    def read(self, columns: Sequence[str], rows: np.ndarray) -> Iterator[pa.Table]:
        return self.rows.read(columns, rows)


class SeedTexts:
    """The texts of the labelled samples that training replays. Their keys are computed once, when this is built."""

    def __init__(self, samples: Sequence[TrainingSample], similarity: TextSimilarity, location: Callable[[str], str]) -> None:
        self._samples = samples
        self._keys = TextKeys.of(similarity, chain.from_iterable(map(pairs_of, samples)))
        images = hashes_of("|".join(location(unrouted(image)[1]) for image in sample.images) for sample in samples)
        self._images = np.repeat(images, [len(sample.turns) for sample in samples])

    def __len__(self) -> int:
        return len(self._images)

    def keyed(self) -> Iterator[tuple[TextKeys, np.ndarray]]:
        yield self._keys, self._images

    def read(self, columns: Sequence[str], rows: np.ndarray) -> Iterator[pa.Table]:
        wanted = np.zeros(len(self), dtype=bool)
        wanted[rows] = True
        found = compress(
            ((*pair, sample.image_id or seed_image_id("")) for sample in self._samples for pair in pairs_of(sample)), wanted.tolist()
        )
        while piece := list(islice(found, _PAIRS_AT_ONCE)):
            questions, answers, images = zip(*piece, strict=True)
            yield pa.table({"question": questions, "answer": answers, "record_id": images}).select(list(columns))
