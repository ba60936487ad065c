"""Count the files of a folder or a container that are not read, and report them in a line."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

log = logging.getLogger(__name__)

HIDDEN, HIDDEN_FOLDER, LINKED_FOLDER = "hidden files", "hidden folders", "folders behind links"
_DATA_SUFFIXES = frozenset((
    "apng", "avif", "bmp", "gif", "heic", "heif", "hif", "jfif", "jp2", "jpe", "jpeg", "jpg", "jxl", "pbm", "pgm", "png", "pnm", "ppm",
    "svg", "tga", "tif", "tiff", "webp", "arw", "cr2", "dng", "nef", "7z", "bz2", "gz", "tar", "tgz", "xz", "zip", "zst", "arrow",
    "feather", "npy", "npz", "parq", "parquet", "pq", "tfrecord",
))  # fmt: skip
"""Suffixes of files that may hold images. Those that a source does not read are counted; captions and notes beside images are not."""
_MAX_SHOWN = 12


def note_unread(name: str, wanted: Iterable[str], unread: Counter[str]) -> None:
    """Count a file that may hold images, and does not end in one of `wanted`, by its suffix."""
    suffix = name.rpartition(".")[2].lower()
    if suffix in _DATA_SUFFIXES and not name.lower().endswith(tuple(wanted)):
        unread[f".{suffix}"] += 1


def listed(unread: Counter[str]) -> str:
    """`.avif 3, .heic 1`."""
    shown = unread.most_common(_MAX_SHOWN)
    more = f" and {len(unread) - len(shown)} kinds more" if len(unread) > len(shown) else ""
    return ", ".join(f"{kind} {count}" for kind, count in shown) + more


@lru_cache(maxsize=1024)
def say_once(line: str) -> None:
    """Log a line once per process: a set is read for the check of a config, and again for the run."""
    log.warning("%s", line)


def tell_unread(what: str, wanted: Iterable[str], unread: Counter[str]) -> None:
    """Report the files of a set that are not read, if any."""
    if found := +unread:
        say_once(f"{what}: not read are {listed(found)}; read are files that end in {', '.join(wanted)}")
