"""Perceptual fingerprints: whether two files hold the same picture, also at another size, in another format or compressed harder.

A perceptual hash finds candidates and a thumbnail decides. `python -m benchmarks.quality.decontamination` measures both thresholds. A
picture that is cropped by more than a few pixels, mirrored, or without its colours counts as another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MAX_HASH_DISTANCE = 10
"""Largest number of different bits of 64 between the hashes of candidates."""
MAX_DIFFERENCE = 0.11
"""Largest difference of the thumbnails of equal pictures, see `differences`."""
_REDUCED, _FACTOR = 64, 4
"""Side in pixels of the square that the hash is computed on, and how much smaller the thumbnail is."""


class Fingerprint(NamedTuple):
    """The fingerprint of an image."""

    phash: np.uint64
    thumbnail: np.ndarray
    """uint8 of shape (16, 16, 3)."""


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image; it depends on the pixels alone."""
    from imagehash import phash  # here because most runs have no image to compare
    from PIL.Image import Resampling

    reduced = image.resize((_REDUCED, _REDUCED), Resampling.BILINEAR)
    bits = np.packbits(phash(reduced).hash)
    return Fingerprint(bits.view(np.uint64)[0], np.asarray(reduced.reduce(_FACTOR)))


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of N images."""

    hashes: np.ndarray
    """uint64 of shape (N,)."""
    thumbnails: np.ndarray
    """uint8 of shape (N, 16, 16, 3)."""

    @classmethod
    def of(cls, ones: Sequence[Fingerprint]) -> Fingerprints:
        """The fingerprints of at least one image."""
        return cls(np.array([one.phash for one in ones], np.uint64), np.stack([one.thumbnail for one in ones]))

    def __getitem__(self, index: int) -> Fingerprint:
        return Fingerprint(self.hashes[index], self.thumbnails[index])

    def same_as(self, one: Fingerprint) -> list[int]:
        """The images, in ascending order, that show the same picture as another one. Takes microseconds for thousands of images."""
        near = np.flatnonzero(np.bitwise_count(self.hashes ^ one.phash) <= MAX_HASH_DISTANCE)
        if not near.size:
            return []
        return near[differences(self.thumbnails[near], one.thumbnail) <= MAX_DIFFERENCE].tolist()


def differences(thumbnails: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The root mean square difference of each of N thumbnails and another one, relative to their contrast (standard deviation).

    Relative, because two pages of text or two charts differ by few grey levels and have little contrast.

    Args:
        thumbnails: uint8 of shape (N, 16, 16, 3).
        other: uint8 of shape (16, 16, 3).
    """
    flat, given = thumbnails.reshape(len(thumbnails), other.size).astype(float), other.reshape(-1).astype(float)
    contrast = (flat.std(axis=1) + given.std()) / 2
    return np.sqrt(np.square(flat - given).mean(axis=1)) / np.maximum(contrast, 1.0)
