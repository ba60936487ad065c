"""Folders of drawings: what is wrong with one is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from actors.images import BadImageError
from loop.config.sets import DrawingsSet
from loop.errors import UserError
from loop.sources.drawings.houses import SHIPPED, house_names, read_things
from loop.sources.drawings.source import DrawingsImages
from loop.sources.worlds.build import build_world, named_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a house of its own, `mine`: a copy of noto's."""
    made = tmp_path / "drawings"
    made.mkdir()
    shutil.copyfile(f"{SHIPPED}/things.json", made / "things.json")
    shutil.copyfile(f"{SHIPPED}/noto.png", made / "mine.png")
    return made


def built(folder: Path, *styles: str) -> DrawingsImages:
    source = build_world(DrawingsSet(kind="drawings", path=str(folder), styles=styles, seed=1, num_images=4))
    assert isinstance(source, DrawingsImages)
    return source


def rewrite_things(folder: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((folder / "things.json").read_text())
    change(document)
    (folder / "things.json").write_text(json.dumps(document))


def erase(folder: Path, *numbers: int) -> None:
    atlas = Image.open(folder / "mine.png").copy()
    for number in numbers:
        row, column = divmod(number, 10)
        atlas.paste((0, 0, 0, 0), (column * 48, row * 48, column * 48 + 48, row * 48 + 48))
    atlas.save(folder / "mine.png")


def test_a_house_of_ones_own_is_drawn_like_a_shipped_one(folder: Path) -> None:
    source = built(folder, "mine")
    assert house_names(str(folder)) == ["mine"]
    shipped = DrawingsImages(1, ("noto",), 4)
    for own, other in zip(source.image_ids(), shipped.image_ids(), strict=True):
        assert own == other.replace("noto", "mine")
        assert source.open(own).tobytes() == shipped.open(other).tobytes()
    assert named_images(f"drawings:path={folder}", "--images").open("drawings-mine-1-000000") == source.open("drawings-mine-1-000000")


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda folder: (folder / "mine.png").rename(folder / "yours.png"), "there is no house 'mine' in .*; it has yours"),
    (lambda folder: Image.open(folder / "mine.png").crop((0, 0, 480, 336)).save(folder / "mine.png"),
     "does not fit things.json: it is 480 x 336 pixels, but 80 tiles of 48 pixels, 10 a row, make 480 x 384"),
    (lambda folder: erase(folder, 0), "lacks drawings of 1 of 80 things: dog; draw them, or leave the house out"),
    (lambda folder: erase(folder, *range(1, 9)), "lacks drawings of 8 of 80 things: cat, horse, cow, pig, mouse, ...;"),
    (lambda folder: Image.open(folder / "mine.png").convert("RGB").save(folder / "mine.png"), "has no transparency; expected an RGBA"),
    (lambda folder: (folder / "mine.png").write_bytes(b"not an image"), "cannot be read: .*; expected a PNG image"),
    (lambda folder: (folder / "things.json").unlink(), "things.json of the drawings in .* cannot be read"),
    (lambda folder: (folder / "things.json").write_text("{"), "things.json of the drawings in .* cannot be read"),
    (lambda folder: (folder / "things.json").write_text("[]"), "no list `things` of two or more objects"),
    (lambda folder: rewrite_things(folder, lambda document: document.update(tile_px=0)), "tile_px 0 and columns 10; expected numbers"),
    (lambda folder: rewrite_things(folder, lambda document: document["things"][3].update(name="dog")), "'dog' twice among names and kinds"),
    (lambda folder: rewrite_things(folder, lambda document: document["things"][3].pop("kind")), "the name or kind None; expected words"),
    (lambda folder: rewrite_things(folder, lambda document: document["things"][3].update(name="a.b")), "the name or kind 'a.b'; expected"),
])  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(folder: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        built(folder, "mine")
    assert "\n" not in str(caught.value)


def test_a_style_that_is_nearly_right_is_asked_back() -> None:
    with pytest.raises(UserError, match=r"there is no house 'notto' in .*; it has fluent, noto, openmoji, twemoji.*'noto'"):
        build_world(DrawingsSet(kind="drawings", styles=("notto",), seed=1, num_images=4))


def test_a_folder_that_another_node_lacks_makes_bad_images(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="cannot be"):
        DrawingsImages(1, ("noto",), 4, str(tmp_path)).open("drawings-noto-1-000000")


def test_things_of_ones_own_make_a_world_of_their_own(folder: Path) -> None:
    rewrite_things(folder, lambda document: document["things"][0].update(name="robot", kind="machine"))
    source = built(folder, "mine")
    assert read_things(str(folder)).names[0] == "robot"
    assert any("robot" in names for names in DrawingsImages(1, ("mine",), 400, str(folder)).objects().values())
    questions = [question.question for question in DrawingsImages(1, ("mine",), 400, str(folder)).questions(400, 0)]
    assert any("robot" in question for question in questions)
    assert source.world.grammar.truth(source.scene("drawings-mine-1-000000"), "How many machines are there?").answer
