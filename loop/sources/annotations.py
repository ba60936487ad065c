"""Read images as text: COCO's annotation files and those of its layout (Objects365), or JSON Lines as LLaVA has them.

    captions     {"annotations": [{"image_id": 9, "caption": "..."}]}
    instances    {"images": [{"id": 9, "file_name": "9.jpg", "width": 640, "height": 480}], "categories": [{"id": 1, "name": "person"}],
                  "annotations": [{"image_id": 9, "category_id": 1, "bbox": [x, y, width, height], "iscrowd": 0}]}
    JSON Lines   {"id": "9", "image": "9.jpg", "captions": ["..."], "instances": [{"category": "person", "bbox": [x1, y1, x2, y2]}]}

Boxes are in pixels in the first two and shares of width and height in the third. An unusable image or object is set
aside and counted by reason; an unusable file is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from loop.errors import UserError, one_line, printable
from policies.teaching.prompts import SeenObject, TextView
from policies.texts import decoded_text

TOLERANCE_PIXELS = 2.0
"""How far a box may reach outside of its image and still be clamped to it: rounding and labelling at the edge do that."""
MAX_OBJECTS = 80
"""Objects of one image that are shown to a teacher, the largest first: Objects365 has images with hundreds."""
_MAX_TEXT_CHARACTERS = 4_096
_SHARE_TOLERANCE = 0.005
_NUM_EXAMPLES = 3
_Box = tuple[float, float, float, float]


class SetAside(StrEnum):
    """Why an image, or one of its objects, is not used."""

    NO_CAPTIONS = "no_captions"
    NOTHING_KNOWN = "nothing_known"  # neither captions nor objects
    ZERO_SIZE = "zero_size"
    BAD_BOX = "bad_box"  # not four numbers
    EMPTY_BOX = "empty_box"
    OUTSIDE_IMAGE = "outside_image"
    UNKNOWN_CATEGORY = "unknown_category"
    UNKNOWN_IMAGE = "unknown_image"
    TOO_MANY = "too_many"


@dataclass(frozen=True, slots=True)
class Annotations:
    """What is known about images, as text."""

    views: tuple[TextView, ...]
    """In the file's order."""
    images_set_aside: Counter[SetAside] = field(default_factory=Counter)
    objects_set_aside: Counter[SetAside] = field(default_factory=Counter)


def read_annotations(captions: Path | None, instances: Path | None) -> Annotations:
    """The text views of all images that have one.

    Args:
        captions: COCO captions, or JSON Lines (`.jsonl`) that hold objects too.
        instances: COCO instances. With captions they define the set of images; without, images are described by objects alone.

    Raises:
        UserError: a file cannot be read, is of another layout, does not fit the other, or leaves no image.
    """
    if captions is not None and captions.suffix == ".jsonl":
        if instances is not None:
            raise UserError(f"{captions} is JSON Lines, which hold captions and objects; leave --instances out")
        found = _from_lines(captions)
    elif captions is not None or instances is not None:
        found = _from_coco(captions, instances)
    else:
        raise UserError("no annotations are given; expected --captions, --instances or both")
    if not found.views:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.images_set_aside.items()) or "the file lists none"
        raise UserError(f"no image of {captions or instances} can be used: {reasons}")
    return found


# ---- COCO


@dataclass(slots=True)
class _Image:
    name: str
    width: float
    height: float
    captions: list[str] = field(default_factory=list)
    objects: list[SeenObject] = field(default_factory=list)


def _from_coco(captions_path: Path | None, instances_path: Path | None) -> Annotations:
    captions = None if captions_path is None else _load(captions_path)
    instances = None if instances_path is None else _load(instances_path)
    base_path, base = cast(tuple[Path, dict[str, Any]], (captions_path, captions) if instances is None else (instances_path, instances))
    images = dict(_images(base, base_path))
    objects_set_aside: Counter[SetAside] = Counter()
    if captions is not None and captions_path is not None:
        _add_captions(images, captions, captions_path, base_path)
    if instances is not None and instances_path is not None:
        _add_objects(images, instances, instances_path, objects_set_aside)
    views, images_set_aside = [], Counter[SetAside]()
    for image_id, image in images.items():
        reason = _unusable(image, captions is not None)
        if reason:
            images_set_aside[reason] += 1
        else:
            objects = _largest(image.objects, objects_set_aside)
            views.append(TextView(str(image_id), image.name, tuple(image.captions), objects))
    return Annotations(tuple(views), images_set_aside, objects_set_aside)


def _unusable(image: _Image, has_captions: bool) -> SetAside | None:
    if not _has_area(image.width, image.height):
        return SetAside.ZERO_SIZE
    if has_captions and not image.captions:
        return SetAside.NO_CAPTIONS
    return None if image.captions or image.objects else SetAside.NOTHING_KNOWN


def _images(content: dict[str, Any], path: Path) -> Iterator[tuple[int | str, _Image]]:
    known: set[str] = set()
    for where, entry in _entries(content, "images", path):
        image_id = _id_of(entry, "id", where)
        if str(image_id) in known:
            raise UserError(f"{where} has the id {image_id!r:.80}, which another image has too")
        known.add(str(image_id))
        yield image_id, _Image(_text_of(entry, "file_name", where), entry.get("width", 0), entry.get("height", 0))


def _add_captions(images: dict[int | str, _Image], content: dict[str, Any], path: Path, base_path: Path) -> None:
    strangers: dict[int | str, None] = {}
    num_known = 0
    for where, entry in _entries(content, "annotations", path):
        image_id = _id_of(entry, "image_id", where)
        caption = _text_of(entry, "caption", where, empty=True)
        if image_id not in images:
            strangers[image_id] = None
        elif caption.strip():
            num_known += 1
            images[image_id].captions.append(caption)
    if strangers:
        examples = ", ".join(f"{one!r:.40}" for one in list(strangers)[:_NUM_EXAMPLES])
        common = "no image id in common" if num_known == 0 else f"captions of {len(strangers)} images that the latter does not list"
        raise UserError(
            f"{path} does not fit {base_path}: {common} (such as {examples}); expected the captions and the instances of the same images"
        )


def _add_objects(images: dict[int | str, _Image], content: dict[str, Any], path: Path, set_aside: Counter[SetAside]) -> None:
    names = {_id_of(entry, "id", where): _text_of(entry, "name", where) for where, entry in _entries(content, "categories", path)}
    num_kept = 0
    here: Counter[SetAside] = Counter()
    for where, entry in _entries(content, "annotations", path):
        if "bbox" not in entry or "category_id" not in entry:
            raise UserError(f"{where} has no bbox or no category_id; expected COCO instances")
        image = images.get(_id_of(entry, "image_id", where))
        category = names.get(_id_of(entry, "category_id", where))
        found = (
            SetAside.UNKNOWN_IMAGE if image is None
            else SetAside.UNKNOWN_CATEGORY if category is None
            else _shares(entry["bbox"], image.width, image.height)
        )  # fmt: skip
        if isinstance(found, SetAside):
            here[found] += 1
        elif image is not None and category is not None:
            image.objects.append(SeenObject(category, found, is_crowd=entry.get("iscrowd") in (1, True)))
            num_kept += 1
    if here and not num_kept:
        raise UserError(f"no object of {path} can be used: {', '.join(f'{reason} {count}' for reason, count in here.items())}")
    set_aside.update(here)


def _shares(box: Any, width: float, height: float) -> _Box | SetAside:
    """A box `[x, y, width, height]` in pixels as x1, y1, x2, y2 in 0..1."""
    if not _is_box(box):
        return SetAside.BAD_BOX
    if not _has_area(width, height):
        return SetAside.ZERO_SIZE
    x, y, box_width, box_height = box
    return _clamped((x, y, x + box_width, y + box_height), width, height, TOLERANCE_PIXELS)


def _clamped(box: _Box, width: float, height: float, tolerance: float) -> _Box | SetAside:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return SetAside.EMPTY_BOX
    if min(x1, y1) < -tolerance or x2 > width + tolerance or y2 > height + tolerance:
        return SetAside.OUTSIDE_IMAGE
    shares = (max(0.0, x1) / width, max(0.0, y1) / height, min(x2, width) / width, min(y2, height) / height)
    return shares if shares[0] < shares[2] and shares[1] < shares[3] else SetAside.EMPTY_BOX


def _largest(objects: list[SeenObject], set_aside: Counter[SetAside]) -> tuple[SeenObject, ...]:
    """The largest objects, in the file's order."""
    if len(objects) <= MAX_OBJECTS:
        return tuple(objects)
    set_aside[SetAside.TOO_MANY] += len(objects) - MAX_OBJECTS
    by_area = sorted(range(len(objects)), key=lambda index: -_area(objects[index].box))
    return tuple(objects[index] for index in sorted(by_area[:MAX_OBJECTS]))


def _area(box: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# ---- JSON Lines


def _from_lines(path: Path) -> Annotations:
    views: dict[str, TextView] = {}
    images_set_aside, objects_set_aside = Counter[SetAside](), Counter[SetAside]()
    for where, entry in _lines(path):
        image_id = str(_id_of(entry, "id", where))
        if image_id in views:
            raise UserError(f"{where} has the id {image_id!r:.80}, which another image has too")
        captions = entry.get("captions", [])
        if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
            raise UserError(f"{where}: captions must be a list of texts")
        kept = tuple(_checked(one, "captions", where) for one in captions if one.strip())
        objects = list(_line_objects(entry, path, where, objects_set_aside))
        if not kept and not objects:
            images_set_aside[SetAside.NOTHING_KNOWN] += 1
            continue
        views[image_id] = TextView(image_id, _text_of(entry, "image", where), kept, _largest(objects, objects_set_aside))
    return Annotations(tuple(views.values()), images_set_aside, objects_set_aside)


def _line_objects(entry: dict[str, Any], path: Path, where: str, set_aside: Counter[SetAside]) -> Iterator[SeenObject]:
    for place, inner in _entries(entry, "instances", path, where):
        category, box = _text_of(inner, "category", place), cast(_Box, inner.get("bbox"))
        found = _clamped(box, 1.0, 1.0, _SHARE_TOLERANCE) if _is_box(box) else SetAside.BAD_BOX
        if isinstance(found, SetAside):
            set_aside[found] += 1
        else:
            yield SeenObject(category, found)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                line = decoded_text(line)
                if not line.strip():
                    continue
                entry = json.loads(line)
                where = f"line {number} of {path}"
                if not isinstance(entry, dict):
                    raise UserError(f"{where} is {type(entry).__name__}; expected an object with image, captions and instances")
                yield where, entry
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"annotations {path} cannot be read: {one_line(error)}; expected JSON Lines") from error


# ---- what both need


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(decoded_text(path.read_bytes()), object_pairs_hook=_without_outline)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"annotations {path} cannot be read: {one_line(error)}; expected a JSON file of COCO's layout") from error
    if not isinstance(content, dict):
        raise UserError(f"annotations {path} hold {type(content).__name__}; expected an object with images and annotations, as COCO has")
    return content


def _without_outline(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Drop outlines while the file is read: they are nine tenths of COCO's instances and never used. A key that appears twice with
    different values is refused."""
    entry = dict(pairs)
    if len(entry) < len(pairs) and (key := next((key for key, value in pairs if entry[key] != value), None)) is not None:
        raise ValueError(f"the key {key[:80]!r} appears twice in one object, with different values")
    entry.pop("segmentation", None)
    return entry


def _entries(content: dict[str, Any], name: str, path: Path, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    entries = content.get(name)
    if not isinstance(entries, list):
        raise UserError(f"{where or f'annotations {path}'} hold no list {name!r}; expected COCO's layout")
    for index, entry in enumerate(entries):
        place = f"{name}[{index}] of {where or path}"
        if not isinstance(entry, dict):
            raise UserError(f"{place} is {type(entry).__name__}; expected an object")
        yield place, entry


def _id_of(entry: dict[str, Any], name: str, where: str) -> int | str:
    found = entry.get(name)
    if type(found) is int and abs(found) < 1 << 63:
        return found
    if isinstance(found, str) and found:
        return _checked(found, name, where)
    raise UserError(f"{where} has {name} {found!r:.80}; expected a number or a name")


def _text_of(entry: dict[str, Any], name: str, where: str, *, empty: bool = False) -> str:
    found = entry.get(name)
    if not isinstance(found, str):
        raise UserError(f"{where} has {name} {found!r:.80}; expected a text")
    text = _checked(found, name, where)
    if not text.strip() and not empty:
        raise UserError(f"{where} has an empty {name}")
    return text


def _checked(text: str, name: str, where: str) -> str:
    if len(text) > _MAX_TEXT_CHARACTERS:
        raise UserError(f"{where} has {name} of {len(text)} characters; the limit is {_MAX_TEXT_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has {name} {printable(text[:80])!r}, which is not valid Unicode: {error.reason}") from error
    return text


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(one) for one in value)


def _has_area(width: Any, height: Any) -> bool:
    return _is_number(width) and _is_number(height) and width > 0 and height > 0
