"""Fingerprint the images of a source, several at once."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import psutil

from actors.images import BadImageError, ImageSource
from policies.decontamination.fingerprints import Fingerprint, fingerprint

_MAX_THREADS = 8
"""Each has one decoded image in memory."""
_PART = 50
"""Images that a thread reads before it can be stopped."""


def fingerprints_of(source: ImageSource, image_ids: Sequence[str]) -> list[Fingerprint | BadImageError]:
    """The fingerprints of images in their order, or why one cannot be read."""
    # Pillow releases the GIL while decoding. Each thread reads a copy, as an actor does, because sources keep open files.
    pickled = pickle.dumps(source)
    parts = [image_ids[start : start + _PART] for start in range(0, len(image_ids), _PART)]
    with ThreadPoolExecutor(min(_MAX_THREADS, psutil.cpu_count() or 1)) as threads:
        return list(chain.from_iterable(threads.map(partial(_fingerprints, pickled), parts)))


def _fingerprints(pickled: bytes, image_ids: Sequence[str]) -> list[Fingerprint | BadImageError]:
    source: ImageSource = pickle.loads(pickled)
    return [_fingerprint(source, image_id) for image_id in image_ids]


def _fingerprint(source: ImageSource, image_id: str) -> Fingerprint | BadImageError:
    try:
        return fingerprint(source.open(image_id))
    except BadImageError as error:
        return error
