"""Images of a folder: JPEG, PNG and WebP files, read as if a stranger had put them there."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from actors.images import BadImageError
from loop.errors import UserError, printable

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP")
"""The only decoders that are tried, whatever a file is called."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 50_000_000
"""Default limit of an image's width times height."""
MAX_ASPECT_RATIO = 100
"""Processors bring the shorter side to what a model takes, and cut the rest off afterwards: a line of 1 x 20,000 pixels would become
gigabytes. Qwen-VL's refuse more than 200."""
_PILLOW_MAX_PIXELS = 89_478_485
"""Where Pillow itself begins to warn of a decompression bomb; its default `Image.MAX_IMAGE_PIXELS`."""

_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow's parsers raise on hostile or damaged files."""


class ImageFolder:
    """The images under a folder, at any depth, by their path relative to it.

    Hidden files and folders are left out, folders behind symbolic links are not entered. A file that cannot be read safely is
    listed all the same: `open` says why, so that it is counted. Pickles without its list of ids, which is read again when asked for.
    """

    def __init__(self, path: str | Path, max_pixels: int = MAX_PIXELS, limit: int | None = None) -> None:
        """Args:
            path: the folder.
            max_pixels: width times height above which an image is set aside, before it is decoded.
            limit: take only the first so many images, in the order of their ids; None takes all.

        Raises:
            UserError: the folder is missing, unreadable or holds no image, or a limit makes no sense.
        """
        if not 1 <= max_pixels <= _PILLOW_MAX_PIXELS:
            raise UserError(f"max_pixels is {max_pixels}; expected 1 to {_PILLOW_MAX_PIXELS}")
        if limit is not None and limit < 1:
            raise UserError(f"the limit of images is {limit}; expected at least 1, or none for all images")
        self.path = checked_folder(path)
        self.max_pixels = max_pixels
        self.limit = limit
        self._ids: list[str] | None = None
        if not self.image_ids():
            raise UserError(f"image folder {path} holds no image; expected files that end in {', '.join(SUFFIXES)}")

    def image_ids(self) -> list[str]:
        if self._ids is None:
            self._ids = sorted(_image_files(self.path))[: self.limit]
        return list(self._ids)

    def open(self, image_id: str) -> Image.Image:
        return open_image(self.path, image_id, self.max_pixels)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ids": None}


def checked_folder(path: str | Path) -> Path:
    """The absolute path of an image folder.

    Raises:
        UserError: it is missing, no folder, or cannot be listed.
    """
    try:
        folder = Path(path).expanduser().absolute()
    except RuntimeError as error:  # ~ of a user that there is not
        raise UserError(f"image folder {path} cannot be found: {error}") from error
    if not os.path.isdir(folder):
        raise UserError(f"image folder {path} {'is a file' if os.path.exists(folder) else 'does not exist'}; expected a folder of images")
    try:
        os.listdir(folder)
    except OSError as error:
        raise UserError(f"image folder {path} cannot be read: {error.strerror}; check its permissions") from error
    return folder


def open_image(folder: Path, image_id: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One image as 8-bit RGB: turned as its EXIF data says, alpha laid over white.

    Raises:
        BadImageError: it is missing, outside the folder, of another format, animated, larger than `max_pixels`, too thin, or corrupt.
    """
    path = _file_inside(folder, image_id)
    try:
        with Image.open(path, formats=FORMATS) as image:
            _refuse_oddities(image, printable(image_id), max_pixels)
            return _to_rgb(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except _PILLOW_ERRORS as error:
        reason = f"not a readable {'/'.join(FORMATS)} image ({type(error).__name__}: {printable(str(error))})"
        raise BadImageError(f"{printable(image_id)}: {reason}") from error


def _file_inside(folder: Path, image_id: str) -> Path:
    """The regular file behind an id. Ids also come from data files, so one may point anywhere."""
    name = printable(image_id)
    try:
        path = (folder / image_id).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL in the name
        raise BadImageError(f"{name}: cannot be looked up in {folder}: {printable(str(error))}") from error
    if not path.is_relative_to(folder.resolve()):
        raise BadImageError(f"{name}: lies outside the image folder {folder}")
    if not os.path.isfile(path):
        raise BadImageError(f"{name}: {'is no regular file' if os.path.exists(path) else 'does not exist'} in {folder}")
    return path


def _refuse_oddities(image: Image.Image, name: str, max_pixels: int) -> None:
    num_pixels = image.width * image.height
    if num_pixels == 0:
        raise BadImageError(f"{name}: is {image.width} x {image.height} pixels")
    if num_pixels > max_pixels:
        raise BadImageError(f"{name}: is {image.width} x {image.height} = {num_pixels} pixels; the limit is {max_pixels}")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadImageError(f"{name}: is {image.width} x {image.height} pixels; the limit is {MAX_ASPECT_RATIO} times as long as wide")
    # A JPEG with several pictures is a phone's photo with previews or a depth map behind it; its first picture is the photo.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise BadImageError(f"{name}: is animated")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 8
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _image_files(folder: Path) -> Iterator[str]:
    num_unnameable = 0
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                continue
            image_id = Path(root, name).relative_to(folder).as_posix()
            if _is_utf8(image_id):
                yield image_id
            else:
                num_unnameable += 1
    if num_unnameable:
        log.warning("%d images of %s are left out: their names are not UTF-8", num_unnameable, folder)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"image folder {error.filename} cannot be read: {error.strerror}; check its permissions") from error
