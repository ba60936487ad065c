"""Export the images of records: files unchanged, under their own names if Windows allows them; images without files become PNGs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from actors.images import BadImageError, FileSource, ImageSource
from loop.errors import StoreError
from loop.sources.decoding import SUFFIXES
from loop.sources.routed import RoutedSource, unrouted
from policies.records import Record

_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Characters that Windows forbids in file names."""
_SUFFIX_BY_START = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as a file."""

    name: str
    """Path below the folder of images, unique even where case is ignored."""
    data: bytes


class Pictures:
    """The images of the exported records, and why some are missing."""

    def __init__(self, images: ImageSource, image_id_of: Callable[[Record], str]) -> None:
        self.bad: dict[str, str] = {}
        self.image_id_of = image_id_of
        self._images = images
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._latest = ("", Picture("", b""))  # the records of an image follow each other

    def of(self, record: Record) -> Picture | None:
        """The image of a record; None if it cannot be read."""
        image_id = self.image_id_of(record)
        if image_id not in self.bad and self._latest[0] != image_id:
            try:
                self._latest = (image_id, self._picture(image_id))
            except BadImageError as error:
                self.bad[image_id] = str(error)
        return None if image_id in self.bad else self._latest[1]

    def set_aside(self, record: Record, reason: str) -> None:
        """Leave out the image of a record, for all records about it."""
        self.bad[self.image_id_of(record)] = reason

    def _picture(self, image_id: str) -> Picture:
        source: object = self._images
        set_name, inner = "", image_id
        if isinstance(self._images, RoutedSource):
            source, inner = self._images.found(image_id)
            set_name = unrouted(image_id)[0]
        image = self._images.open(image_id)  # even if the file is copied unchanged: a damaged one is left out
        name, data = source.read_file(inner) if isinstance(source, FileSource) else (f"{inner}.png", _png(image))
        if image_id not in self._names:
            self._names[image_id] = self._free_name(_portable(name, data), set_name)
        return Picture(self._names[image_id], data)

    def _free_name(self, name: str, set_name: str) -> str:
        """The name, in a folder of its set if another image has it already."""
        path = PurePosixPath(name)
        number, free = 1, name
        if free.casefold() in self._taken and set_name:
            path = PurePosixPath(set_name) / path
            free = str(path)
        while free.casefold() in self._taken:
            number += 1
            free = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        self._taken.add(free.casefold())
        return free


def _portable(name: str, data: bytes) -> str:
    """A name that Windows also allows, with an image suffix."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StoreError(f"image id {name.removesuffix('.png')!r} leads outside of the export's folder")
    if not name.lower().endswith(SUFFIXES):
        name += next((suffix for start, suffix in _SUFFIX_BY_START.items() if data.startswith(start)), ".png")
    return "/".join(map(_portable_part, PurePosixPath(name).parts))


def _portable_part(part: str) -> str:
    part = _FORBIDDEN.sub("_", part).rstrip(". ")
    return f"_{part}" if not part or _RESERVED.fullmatch(part) else part


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
