"""`vigc pope`: builds POPE's questions for any images whose objects are known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loop.errors import UserError
from loop.scoring.score import read_document
from loop.sources.worlds.build import build_world, parse_world
from loop.store.files import write_lines
from policies.benchmarks import BenchmarkDataError, Document, Question
from policies.benchmarks.documents import Entry, Reader, show
from policies.benchmarks.pope import build_questions

_IN_THE_IMAGE = " in the image?"

Objects = dict[str, list[str]]
"""Image -> categories of its objects."""


def world_objects(text: str, option: str = "--objects") -> Objects:
    """The objects of a set of an embedded world, such as `red circle` or `dog`; `text` is read by `loop.sources.worlds.build`.

    Raises:
        UserError: the text is invalid, or drawings cannot be used.
    """
    return build_world(parse_world(text, option)).objects()


def read_objects(path: Path) -> Objects:
    """The objects in COCO's instances file or JSON Lines (`image`, `instances` with `category`), including images without objects.

    Raises:
        UserError: the file cannot be read or has another format.
    """
    try:
        document = read_document(path)
        return _from_coco(document) if document.entries is None else _from_lines(document)
    except BenchmarkDataError as error:
        raise UserError(str(error)) from error


def pope_questions(
    objects: Objects,
    splits: Sequence[str],
    num_per_image: int,
    num_images: int | None,
    seed: int,
    *,
    short: bool,
    counted: Objects | None = None,
) -> list[Question]:
    """The questions of all splits, numbered from 1.

    Args:
        objects: objects of all images.
        splits: any of `random`, `popular`, `adversarial`.
        num_per_image: questions per image and split, half of them with the answer yes.
        num_images: number of images to ask about, drawn by the seed; None for all.
        seed: seed of all draws.
        short: leave out "in the image", as in the grammar of the embedded worlds.
        counted: objects of the images to count frequencies and co-occurrence in; None for those that are asked about.

    Raises:
        UserError: an option is invalid, or no question can be built.
    """
    if num_images is not None and num_images < 1:
        raise UserError(f"--num-images is {num_images}; expected at least 1")
    try:
        built = (build_questions(objects, split, num_per_image, seed, counted) for split in dict.fromkeys(splits))
        questions = [question for of_split in built for question in of_split]
    except ValueError as error:
        raise UserError(str(error)) from error
    with_questions = sorted({question.image for question in questions})
    if not with_questions:
        raise UserError(f"no question can be asked about {len(objects)} images: each needs an object, and another one that it lacks")
    chosen = set(with_questions if num_images is None else random.Random(seed).sample(with_questions, min(num_images, len(with_questions))))
    kept = (question for question in questions if question.image in chosen)
    texts = (replace(one, text=one.text.replace(_IN_THE_IMAGE, "?")) if short else one for one in kept)
    return [replace(question, question_id=str(number)) for number, question in enumerate(texts, 1)]


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write POPE's JSON Lines, with the split as `category`."""
    write_lines(path, [
        {"question_id": int(one.question_id), "image": one.image, "text": one.text, "label": one.answers[0], "category": one.split}
        for one in questions
    ])  # fmt: skip


def _from_coco(document: Document) -> Objects:
    lists = {
        name: document.content.get(name) if isinstance(document.content, dict) else None for name in ("images", "annotations", "categories")
    }
    bad = [name for name, value in lists.items() if not isinstance(value, list) or not all(isinstance(one, dict) for one in value)]
    if bad:
        raise BenchmarkDataError([f"{document.name} has no list of objects {bad[0]!r}; expected COCO's instances file, or JSON Lines"])
    reader = Reader(document)
    entries = {name: [Entry(f"{name} {index}", one) for index, one in enumerate(value or [])] for name, value in lists.items()}
    for what, listed in (("image", "images"), ("category", "categories")):
        for one in entries[listed]:
            reader.once(one.place, str(one.value.get("id", "")), what)
    names = {reader.id(one, "id"): reader.get(one, "name", str, "a text") for one in entries["categories"]}
    files = {reader.id(one, "id"): reader.get(one, "file_name", str, "a text") for one in entries["images"]}
    found: Objects = {name: [] for name in files.values() if name}
    for one in entries["annotations"]:
        image, category = reader.id(one, "image_id"), reader.id(one, "category_id")
        if image and image not in files:
            reader.fault(one.place, f"image_id {image} is not among the file's images")
        elif category and category not in names:
            reader.fault(one.place, f"category_id {category} is not among the file's categories")
        elif image and category and files[image] and names[category]:
            found[files[image]].append(names[category])
    reader.done()
    return found


def _from_lines(document: Document) -> Objects:
    reader, found = Reader(document), Objects()
    for entry in document.records("images with their objects, an object a line"):
        image = reader.get(entry, "image", str, "a file name")
        instances = reader.get(entry, "instances", list, "a list of objects with category")
        categories = [one.get("category") if isinstance(one, dict) else None for one in instances or []]
        if not all(isinstance(category, str) and category for category in categories):
            reader.fault(entry.place, f"instances is {show(instances)}; expected a list of objects with category")
        elif image:
            found.setdefault(image, []).extend(map(str, categories))
    reader.done()
    return found
