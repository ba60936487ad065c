"""Fingerprint the images of a source, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil

from actors.images import BadImageError, ImageSource
from policies.decontamination.fingerprints import Fingerprint, fingerprint

_MAX_THREADS = 8
"""Each has one decoded image in memory."""


def fingerprints_of(source: ImageSource, image_ids: Sequence[str]) -> list[Fingerprint | BadImageError]:
    """The fingerprints of images in their order, or why one cannot be read. Threads suffice: Pillow releases the GIL while it decodes."""
    with ThreadPoolExecutor(min(_MAX_THREADS, psutil.cpu_count() or 1)) as threads:
        return list(threads.map(partial(_fingerprint, source), image_ids))


def _fingerprint(source: ImageSource, image_id: str) -> Fingerprint | BadImageError:
    try:
        return fingerprint(source.open(image_id))
    except BadImageError as error:
        return error
