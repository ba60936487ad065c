"""Folders of drawings: `things.json` says what is drawn, and every `NAME.png` is the drawings of one house.

`things.json` has `tile_px`, `columns` and `things`, a list of objects with `name` and `kind`. An atlas is an image with transparency, of
square tiles in the order of that list, `columns` a row.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loop.errors import UserError, one_line, printable
from loop.sources.reading.places import ACCESS_ERRORS, Place
from policies.checks import did_you_mean

SHIPPED = str(Path(__file__).parent / "atlases")
"""Four houses' drawings of eighty things."""
STYLE = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""Pattern of a house's name, which is part of image ids."""
THINGS_FILE = "things.json"

_NAME = re.compile(r"[^\W_][\w' -]{0,59}")
_MAX_TILE_PX = 512
_MIN_OPAQUE_SHARE = 0.01
"""Least share of a tile's pixels that a drawing covers."""
_MAX_NAMED = 5
"""Things that an error names."""


@dataclass(frozen=True)
class Things:
    """What a folder has drawings of, in the order of its atlases."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    """Of every thing: such as `animal`."""
    tile_px: int
    columns: int

    @property
    def all_kinds(self) -> tuple[str, ...]:
        """Each kind once, in order of appearance."""
        return tuple(dict.fromkeys(self.kinds))

    @property
    def atlas_size(self) -> tuple[int, int]:
        """Width and height of an atlas in pixels."""
        return self.columns * self.tile_px, -(-len(self.names) // self.columns) * self.tile_px


@lru_cache(maxsize=16)
def read_things(folder: str) -> Things:
    """The things of a folder.

    Raises:
        UserError: there is no `things.json`, or it has another form.
    """
    where = f"{THINGS_FILE} of the drawings in {folder}"
    try:
        document = json.loads(_read(folder, THINGS_FILE))
    except ACCESS_ERRORS as error:
        raise UserError(f"{where} cannot be read: {one_line(error)}; give a folder of atlases with their {THINGS_FILE}") from error
    listed = document.get("things") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) < 2 or not all(isinstance(one, dict) for one in listed):
        raise UserError(f"{where} has no list `things` of two or more objects with name and kind")
    sides = [document.get(key) for key in ("tile_px", "columns")]
    if not all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _MAX_TILE_PX for side in sides):
        raise UserError(f"{where} has tile_px {sides[0]!r} and columns {sides[1]!r}; expected numbers from 1 to {_MAX_TILE_PX}")
    names, kinds = ([one.get(key) for one in listed] for key in ("name", "kind"))
    _check_words(where, names, kinds)
    return Things(tuple(names), tuple(kinds), *map(int, sides))  # pyright: ignore[reportArgumentType]


def _check_words(where: str, names: Sequence[Any], kinds: Sequence[Any]) -> None:
    bad = next((word for word in (*names, *kinds) if not isinstance(word, str) or not _NAME.fullmatch(word)), None)
    if bad is not None or None in (*names, *kinds):
        raise UserError(f"{where} has the name or kind {printable(repr(bad))}; expected words of letters, digits and spaces")
    taken = [*names, *dict.fromkeys(kinds), "object"]
    twice = next((word for word in taken if taken.count(word) > 1), None)
    if twice is not None:
        raise UserError(f"{where} has {twice!r} twice among names and kinds; give every thing and every kind a name of its own")


def house_names(folder: str) -> list[str]:
    """The houses of a folder, sorted."""
    found = [name.removesuffix(".png") for name in Place.of(folder, "folder of drawings").names([".png"])]
    return [name for name in found if re.fullmatch(STYLE, name)]


@lru_cache(maxsize=16)
def read_house(folder: str, style: str) -> tuple[Image.Image, ...]:
    """The drawings of a house, one RGBA tile for each thing.

    Raises:
        UserError: there is no such house, its atlas does not fit `things.json`, or it lacks a drawing.
    """
    things = read_things(folder)
    where = f"atlas {style}.png of the drawings in {folder}"
    try:
        data = _read(folder, f"{style}.png")
    except FileNotFoundError as error:
        known = house_names(folder)
        raise UserError(f"there is no house {style!r} in {folder}; it has {', '.join(known)}{did_you_mean(style, known)}") from error
    except ACCESS_ERRORS as error:
        raise UserError(f"{where} cannot be read: {one_line(error)}; expected a PNG image") from error
    try:
        atlas = Image.open(io.BytesIO(data), formats=["PNG"])
        if atlas.size == things.atlas_size:  # known from the header: a huge image is refused before it is decoded
            atlas.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} cannot be read: {one_line(error)}; expected a PNG image") from error
    if atlas.size != things.atlas_size:
        expected = (
            f"{len(things.names)} tiles of {things.tile_px} pixels, {things.columns} a row, make {_by(things.atlas_size)}; "
            f"draw the atlas in the order of {THINGS_FILE}"
        )
        raise UserError(f"{where} does not fit {THINGS_FILE}: it is {_by(atlas.size)} pixels, but {expected}")
    if not atlas.has_transparency_data:
        raise UserError(f"{where} has no transparency; expected an RGBA image whose pixels outside of the drawings are transparent")
    tiles = tuple(_tiles(atlas.convert("RGBA"), things))
    missing = [name for name, tile in zip(things.names, tiles, strict=True) if _is_empty(tile)]
    if missing:
        named = ", ".join(missing[:_MAX_NAMED]) + (", ..." if len(missing) > _MAX_NAMED else "")
        raise UserError(f"{where} lacks drawings of {len(missing)} of {len(tiles)} things: {named}; draw them, or leave the house out")
    return tiles


def check_houses(folder: str, styles: Sequence[str]) -> Things:
    """The things of a folder, after all of the houses `styles` have been read; raises as `read_house` does."""
    for style in styles:
        read_house(folder, style)
    return read_things(folder)


def _tiles(atlas: Image.Image, things: Things) -> list[Image.Image]:
    side = things.tile_px
    corners = (divmod(index, things.columns) for index in range(len(things.names)))
    return [atlas.crop((column * side, row * side, (column + 1) * side, (row + 1) * side)) for row, column in corners]


def _is_empty(tile: Image.Image) -> bool:
    return float((np.asarray(tile.getchannel("A")) > 127).mean()) < _MIN_OPAQUE_SHARE


def _read(folder: str, name: str) -> bytes:
    with Place.of(folder, "folder of drawings").open(name) as file:
        return file.read()


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
