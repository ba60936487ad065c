"""Decode untrusted images: bounds are checked before decoding, only three decoders are allowed, and the result is always RGB."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from actors.images import BadImageError
from loop.errors import UserError, printable

FORMATS = ("JPEG", "PNG", "WEBP")
"""The only decoders that are tried, whatever the file name."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 50_000_000
"""Limit of an image's width times height; below the size at which Pillow warns of a decompression bomb."""
MAX_FILE_BYTES = 1 << 28
"""Largest encoded image that is read into memory from a container or a remote place."""
MAX_ASPECT_RATIO = 100
"""Longer side over shorter side. Processors resize the shorter side to the model's size before they crop: 1 x 20,000 pixels would become
gigabytes. Qwen-VL's refuse more than 200."""

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_KINDS = {b"GIF8": "a GIF", b"BM": "a BMP", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"<": "HTML, SVG or XML", b"%PDF": "a PDF",
          b"{": "JSON", b"version https://git-lfs": "a Git LFS pointer: run git lfs pull", b"PK": "a zip"}  # fmt: skip

_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow's parsers raise on hostile or damaged files."""


def check_limit(limit: int | None) -> None:
    """Raises `UserError` if the number of images that a source is limited to is invalid."""
    if limit is not None and limit < 1:
        raise UserError(f"the limit of images is {limit}; expected at least 1, or none for all images")


def decoded(file: Path | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image as 8-bit RGB: rotated as its EXIF data says, alpha blended onto white.

    Args:
        file: a path, or a stream that can seek.
        name: name of the image in error messages.
        max_pixels: width times height above which it is refused, before it is decoded.

    Raises:
        BadImageError: it is of another format, animated, larger than `max_pixels`, too thin, or corrupt.
    """
    name = printable(name)
    try:
        return _decoded(file, name, max_pixels)
    except BadImageError:
        raise
    except _PILLOW_ERRORS as error:
        plain = _without_texts(file)
        if plain is None:
            raise _unreadable(name, file, error) from error
    try:
        return _decoded(plain, name, max_pixels)
    except BadImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise _unreadable(name, plain, error) from error


def _decoded(file: Path | BinaryIO, name: str, max_pixels: int) -> Image.Image:
    with Image.open(file, formats=FORMATS) as image:
        _refuse_oddities(image, name, max_pixels)
        return _to_rgb(ImageOps.exif_transpose(image))


def _unreadable(name: str, file: Path | BinaryIO, error: Exception) -> BadImageError:
    if isinstance(error, UnidentifiedImageError):  # its text contains a path or the address of an object
        reason = f"it is {kind}" if (kind := _kind_of(_head(file))) else "of another format, or damaged in its first bytes"
    else:
        reason = f"{type(error).__name__}: {printable(getattr(error, 'strerror', None) or str(error))}"
    return BadImageError(f"{name}: not a readable {'/'.join(FORMATS)} image ({reason})")


def _head(file: Path | BinaryIO, num_bytes: int = 32) -> bytes:
    """The first bytes; empty if they cannot be read."""
    try:
        if isinstance(file, Path):
            with file.open("rb") as stream:
                return stream.read(num_bytes)
        file.seek(0)
        return file.read(num_bytes)
    except (OSError, ValueError):  # the first error is the one that is reported
        return b""


def _kind_of(head: bytes) -> str:
    """The kind of a file that is not an image of the right format, as far as its first bytes tell."""
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        return "an AVIF, HEIC or video file"
    return next((kind for start, kind in _KINDS.items() if head.lstrip().startswith(start)), "")


def _without_texts(file: Path | BinaryIO) -> io.BytesIO | None:
    """A PNG without its texts and colour profile, which are unused and whose size Pillow limits. None if it has none or is not a PNG."""
    if not _head(file).startswith(_PNG):
        return None
    data = _head(file, MAX_FILE_BYTES)
    kept, position = [data[: len(_PNG)]], len(_PNG)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kept += [data[position:end]] if data[position + 4 : position + 8] not in _TEXT_CHUNKS else []
        position = end
    plain = b"".join(kept)
    return io.BytesIO(plain) if len(plain) < len(data) else None


def _refuse_oddities(image: Image.Image, name: str, max_pixels: int) -> None:
    num_pixels = image.width * image.height
    if num_pixels == 0:
        raise BadImageError(f"{name}: is {image.width} x {image.height} pixels")
    if num_pixels > max_pixels:
        raise BadImageError(f"{name}: is {image.width} x {image.height} = {num_pixels} pixels; the limit is {max_pixels}")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadImageError(f"{name}: is {image.width} x {image.height} pixels; the limit is {MAX_ASPECT_RATIO} times as long as wide")
    # A JPEG with several pictures is a phone's photo with previews or a depth map behind it; the first picture is the photo.
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
