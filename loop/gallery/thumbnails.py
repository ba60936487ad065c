"""Small pictures inside a page: WebP as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from actors.images import BadImageError, ImageSource
from loop.errors import printable

_MAX_SIDE = 256
_LOSSLESS_SIDE = 128
"""Images up to this size, such as those of the embedded worlds, are kept as they are."""
_MAX_BYTES = 12_000
"""Of one picture: 500 of them and their texts stay below 10 MB, also as base64."""
_ATTEMPTS = ((_MAX_SIDE, 65), (192, 55), (128, 45), (64, 30))
"""Sides and WebP qualities to try until a picture is small enough; the last is taken as it is."""
_EFFORT = 2
"""Of WebP's encoder, 0..6: more takes twice the time for a few percent of the size."""
_NUM_THREADS = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture on a page, or why there is none."""

    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def pictures(source: ImageSource, image_ids: Iterable[str]) -> dict[str, Picture]:
    """The picture of each image. Several are decoded at the same time."""
    ids = list(dict.fromkeys(image_ids))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return dict(zip(ids, pool.map(lambda image_id: _picture(source, image_id), ids), strict=True))


def _picture(source: ImageSource, image_id: str) -> Picture:
    if not image_id:
        return Picture(problem="the record is about no image")
    try:
        image = source.open(image_id)
    except BadImageError as error:
        return Picture(problem=printable(str(error)))
    data = _small(image)
    return Picture(f"data:image/webp;base64,{base64.b64encode(data).decode()}", image.width, image.height)


def _small(image: Image.Image) -> bytes:
    """The image as WebP."""
    if max(image.size) <= _LOSSLESS_SIDE and len(data := _webp(image, 100, lossless=True)) <= _MAX_BYTES:
        return data
    data, smaller = b"", image.copy()
    for side, quality in _ATTEMPTS:
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        data = _webp(smaller, quality, lossless=False)
        if len(data) <= _MAX_BYTES:
            break
    return data


def _webp(image: Image.Image, quality: int, *, lossless: bool) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=quality, lossless=lossless, method=_EFFORT)
    return sink.getvalue()
