"""Read the images of a folder, local or behind a URI: JPEG, PNG and WebP files, all untrusted."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError, one_line, printable
from loop.sources.decoding import MAX_FILE_BYTES, MAX_PIXELS, SUFFIXES, check_limit, decoded
from loop.sources.reading.places import ACCESS_ERRORS, Place, stays_inside
from loop.sources.reading.unread import listed, tell_unread


class ImageFolder:
    """The images under a folder, at any depth, by their path relative to it.

    Hidden files and folders are left out, folders behind symbolic links are not entered. A file that cannot be read safely is
    still listed: `open` says why, so that it is counted. It is pickled without its list of ids, which is read again on demand.
    """

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        """Args:
            path: the folder, or a URI of one.
            limit: number of images to take, in the order of their ids; None takes all.

        Raises:
            UserError: the folder is missing, unreadable or holds no image, or a limit is invalid.
        """
        check_limit(limit)
        self.folder = checked_folder(path)
        self.limit = limit
        self._ids: list[str] | None = None
        unread: Counter[str] = Counter()
        self._ids = self._names(unread)
        if not self._ids:
            found = f" and holds {listed(+unread)}" if +unread else ""
            raise UserError(f"image folder {path} holds no image{found}; expected files that end in {', '.join(SUFFIXES)}")
        tell_unread(f"image folder {path}", SUFFIXES, unread)

    def image_ids(self) -> list[str]:
        if self._ids is None:
            self._ids = self._names(Counter())
        return list(self._ids)

    def read_file(self, image_id: str) -> tuple[str, bytes]:
        return image_id, read_image(self.folder, image_id)

    def _names(self, unread: Counter[str]) -> list[str]:
        return self.folder.names(SUFFIXES, unread)[: self.limit]

    def open(self, image_id: str) -> Image.Image:
        return open_image(self.folder, image_id)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ids": None}


def checked_folder(path: str | Path) -> Place:
    """The place of an image folder.

    Raises:
        UserError: it is missing, not a folder, or cannot be listed.
    """
    place = Place.of(path, "image folder")
    if not place.is_folder():
        raise UserError(f"image folder {path} {'is a file' if place.is_file() else 'does not exist'}; expected a folder of images")
    if place.local is not None:
        try:
            os.listdir(place.local)
        except OSError as error:
            raise UserError(f"image folder {path} cannot be read: {error.strerror}; check its permissions") from error
    return place


def open_image(folder: Place | Path, image_id: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One image of a folder as 8-bit RGB, as `decoded` gives it.

    Raises:
        BadImageError: it is missing, outside the folder, or refused by `decoded`.
    """
    place = Place(str(folder)) if isinstance(folder, Path) else folder
    file = _fetched(place, image_id) if place.local is None else _file_inside(place.local, image_id)
    return decoded(file, image_id, max_pixels)


def read_image(place: Place, image_id: str) -> bytes:
    """The unchanged bytes of one image of a folder.

    Raises:
        BadImageError: it is missing, outside the folder, too large, or cannot be read.
    """
    if place.local is None:
        return _fetched(place, image_id).getvalue()
    try:
        with _file_inside(place.local, image_id).open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadImageError(f"{printable(image_id)}: cannot be read", f"from {place.local}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadImageError(f"{printable(image_id)}: has more than {MAX_FILE_BYTES} bytes")
    return data


def _file_inside(folder: Path, image_id: str) -> Path:
    """The regular file behind an id. Ids also come from data files, so one may point anywhere."""
    name = printable(image_id)
    try:
        path = (folder / image_id).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # circular links, or a NUL in the name
        raise BadImageError(f"{name}: cannot be looked up", f"in {folder}: {printable(str(error))}") from error
    if not path.is_relative_to(folder.resolve()):
        raise BadImageError(f"{name}: is outside the image folder", str(folder))
    if not os.path.isfile(path) and (other := _spelled_otherwise(image_id)) != image_id:
        return _file_inside(folder, other)
    if not os.path.isfile(path):
        raise BadImageError(f"{name}: {'is not a regular file' if os.path.exists(path) else 'does not exist'}", f"in {folder}")
    return path


def _spelled_otherwise(image_id: str) -> str:
    """A name in a URL's or Windows' spelling, as a plain path."""
    return unquote(image_id).replace("\\", "/")


def _fetched(folder: Place, image_id: str) -> io.BytesIO:
    """The file behind an id, from a remote folder."""
    name = printable(image_id)
    if not stays_inside(image_id):
        raise BadImageError(f"{name}: is outside the image folder", folder.address)
    try:
        with folder.open(image_id) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except ACCESS_ERRORS as error:
        raise BadImageError(f"{name}: cannot be read", f"from {folder.address}: {printable(one_line(error))}") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadImageError(f"{name}: has more than {MAX_FILE_BYTES} bytes")
    return io.BytesIO(data)
