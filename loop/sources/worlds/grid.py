"""The 3 x 3 grid that every scene of an embedded world is laid out on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

T = TypeVar("T")

POSITIONS = (
    "top left", "top center", "top right",
    "middle left", "center", "middle right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip
"""Names of the nine cells, in reading order: the index of a name is the cell."""

NUM_CELLS = len(POSITIONS)
MAX_OBJECTS = 4
"""Most things in a scene."""


@dataclass(frozen=True, slots=True)
class GridThing(ABC):
    """A thing in a cell (0..8, reading order)."""

    cell: int

    @property
    @abstractmethod
    def name(self) -> str:
        """What questions call it: `red ring`, `dog`."""

    @property
    @abstractmethod
    def described(self) -> str:
        """What descriptions call it: the name, with what else can be seen of it."""

    @property
    def position(self) -> str:
        return POSITIONS[self.cell]

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


class GridScene(Protocol):
    """The content of one image of a world."""

    @property
    def image_id(self) -> str: ...

    @property
    def things(self) -> Sequence[GridThing]:
        """In reading order."""
        ...


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, drawn uniformly."""
    return options[int(rng.integers(len(options)))]
