"""Read the images that a COCO file lists: instances, captions or image information in the layout of COCO, which Objects365 shares.

    {"images": [{"id": 139, "file_name": "000000000139.jpg", ...}, ...], "annotations": ..., ...}

Only `images` is read, entry by entry, and of each entry only `file_name` and `id`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import ijson
from PIL import Image

from loop.errors import UserError, one_line, printable
from loop.sources.decoding import check_limit
from loop.sources.folder import checked_folder, open_image, read_image
from loop.sources.reading.json_stream import JsonStream
from loop.sources.reading.places import ACCESS_ERRORS, Place, stays_inside

_BUFFER_BYTES = 1 << 20


class CocoImages:
    """The images that a file lists, by their `file_name`. It is pickled without the list of ids, which is read again on demand."""

    def __init__(self, path: str | Path, images: str | Path, num_name_parts: int | None = None, limit: int | None = None) -> None:
        """Args:
            path: the JSON file, or a URI of it.
            images: the folder that file names are relative to, or a URI of it.
            num_name_parts: number of last parts of a file name to use; None uses all.
            limit: number of images to take, from the first; None takes all.

        Raises:
            UserError: the file cannot be read, names no image or one twice, or a limit is invalid.
        """
        check_limit(limit)
        self.file = Place.of(path, "COCO file")
        self.images = checked_folder(images)
        self.num_name_parts = num_name_parts
        self.limit = limit
        self._ids: list[str] | None = None
        if not self.image_ids():
            raise UserError(f"COCO file {path} names no images; expected an object with a list `images`")

    def image_ids(self) -> list[str]:
        if self._ids is None:
            self._ids = list(islice(self._names(), self.limit))
        return list(self._ids)

    def open(self, image_id: str) -> Image.Image:
        return open_image(self.images, image_id)

    def read_file(self, image_id: str) -> tuple[str, bytes]:
        return image_id, read_image(self.images, image_id)

    def _names(self) -> Iterator[str]:
        entries: dict[str, object] = {}
        for index, (name, number) in enumerate(_listed(self.file)):
            if not isinstance(name, str) or not name.isprintable() or not stays_inside(name):
                where = self._where(index, number)
                raise UserError(f"{where} has file_name {name!r:.80}; expected a printable path below the image folder")
            kept = "/".join(name.split("/")[-(self.num_name_parts or 0) :])
            if kept in entries:
                where, other = self._where(index, number), _shown(entries[kept])
                raise UserError(f"{where} has file_name {kept}, and so has the image with id {other}; expected one entry for each")
            entries[kept] = number
            yield kept

    def _where(self, index: int, number: object) -> str:
        return f"image {index} of {self.file.address} (id {_shown(number)})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ids": None}


def _shown(number: object) -> str:
    """An id in an error."""
    return printable(str(number))[:80]


def _listed(file: Place) -> Iterator[tuple[object, object]]:
    """`file_name` and `id` of every entry of `images`; what follows the list is not read."""
    name: object = None
    number: object = ""
    try:
        with file.open() as stream:
            for prefix, event, value in ijson.parse(
                JsonStream(stream, f"COCO file {file.address}"), buf_size=_BUFFER_BYTES, use_float=True
            ):
                if prefix == "images.item.file_name":
                    if name is not None and name != value:
                        both = printable(f"{name} and {value}")[:160]
                        raise UserError(f"an image of {file.address} has two file_names, {both}; expected one")
                    name = value
                elif prefix == "images.item.id":
                    number = value
                elif prefix == "images.item" and event not in ("start_map", "map_key"):
                    yield name, number
                    name, number = None, ""
                elif (prefix, event) == ("images", "end_array"):
                    return
    except (*ACCESS_ERRORS, ijson.JSONError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"COCO file {file.address} cannot be read: {printable(one_line(error))}; expected JSON in COCO's layout") from error
