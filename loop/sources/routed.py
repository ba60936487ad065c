"""Combine several image sets into one source: ids are `SET|ID`, so that sets may use the same names for different pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.images import BadImageError, ImageSource

if TYPE_CHECKING:
    from PIL import Image

_SEPARATOR = "|"


def routed(set_name: str, image_id: str) -> str:
    """The id of an image of a set."""
    return f"{set_name}{_SEPARATOR}{image_id}"


def unrouted(image_id: str) -> tuple[str, str]:
    """Name of the set, and id of the image in it."""
    name, _, inner = image_id.partition(_SEPARATOR)
    return name, inner


@dataclass(frozen=True)
class RoutedSource:
    """Opens `SET|ID` in the source of that set."""

    sources: Mapping[str, ImageSource]

    def image_ids(self) -> list[str]:
        return [routed(name, image_id) for name, source in self.sources.items() for image_id in source.image_ids()]

    def open(self, image_id: str) -> Image.Image:
        source, inner = self.found(image_id)
        return source.open(inner)

    def found(self, image_id: str) -> tuple[ImageSource, str]:
        """The source of an image, and its id there.

        Raises:
            BadImageError: the id names no set.
        """
        name, inner = unrouted(image_id)
        if name not in self.sources:
            raise BadImageError(f"image {image_id!r} names no set; there are {sorted(self.sources)}")
        return self.sources[name], inner
