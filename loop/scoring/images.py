"""The images of a benchmark's questions: found in a folder by the names that the field uses, drawn from the embedded world, or unpacked
from the table that holds them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from actors.images import BadImageError, ImageSource
from loop.errors import UserError
from loop.sources.folder import SUFFIXES, open_image
from loop.sources.shapes.source import ShapesImages
from loop.store.files import write
from policies.benchmarks import Question

SHAPES = "shapes"
"""In place of a folder: images of the embedded world, whose names say what is in them."""
NO_IMAGE = ""
_BLANK_SIZE, _MID_GREY = (336, 336), (128, 128, 128)
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{1,12})(?:\.jpe?g)?", re.ASCII | re.IGNORECASE)
_COCO_PREFIXES = ("", "COCO_val2014_", "COCO_train2014_", "COCO_test2015_")
_MIN_INLINE_CHARACTERS = 100
"""A longer text without a dot is no file name but the image itself, in base64."""


@dataclass(frozen=True, slots=True)
class BenchmarkImages:
    """Opens what `find_images` has found. Engines take an image with every request: a question that has none gets a grey one."""

    folder: Path | None
    """None for the embedded world."""

    def image_ids(self) -> list[str]:
        """Nobody asks a benchmark for all of its images: the questions name them."""
        return []

    def open(self, image_id: str) -> Image.Image:
        """See `ImageSource.open`."""
        if image_id == NO_IMAGE:
            return Image.new("RGB", _BLANK_SIZE, _MID_GREY)
        if self.folder is None:
            return ShapesImages(seed=0, min_shift=0.0, max_shift=0.0, num_images=1).open(image_id)
        return open_image(self.folder, image_id)

    def problem(self, image_id: str) -> str:
        """Why an image cannot be opened; empty where it can."""
        try:
            self.open(image_id)
        except BadImageError as error:
            return str(error)
        return ""


@dataclass(frozen=True, slots=True)
class FoundImages:
    """Where the images of questions are."""

    source: ImageSource
    ids: dict[str, str]
    """Question id -> image id; `NO_IMAGE` for a question that has none."""
    problems: dict[str, str]
    """Question id -> why its image cannot be used."""


def find_images(questions: Sequence[Question], images: str | None, unpack_into: Path) -> FoundImages:
    """The image of every question, opened once to be sure of it.

    Args:
        questions: as the benchmark reads them.
        images: a folder, `shapes`, or None where the questions hold their images or have none.
        unpack_into: folder for images that the questions hold.

    Raises:
        UserError: questions name images and no folder is given, or it is none.
    """
    if images is None:
        return _checked(questions, BenchmarkImages(unpack_into), _unpacked(questions, unpack_into))
    if images == SHAPES:
        return _checked(questions, BenchmarkImages(None), {question.image: question.image for question in questions})
    folder = Path(images).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"image folder {images} does not exist; expected a folder of images, or {SHAPES}")
    names = {}
    for question in questions:
        found = next((name for name in candidate_names(question) if _is_file(folder / name)), None)
        names.setdefault(question.image, found or question.image)
    return _checked(questions, BenchmarkImages(folder), names)


def candidate_names(question: Question) -> Iterator[str]:
    """File names that a question's image may have, the likeliest first: as it stands; in a folder of the question's own, as ScienceQA has
    them; as COCO names the image of an id; with an ending."""
    image, own = question.image, question.question_id
    yield image
    for folder in (own, f"{question.split}/{own}" if question.split else own):
        yield f"{folder}/image.png" if image == own else f"{folder}/{image}"
    coco = _COCO_NAME.fullmatch(image)
    if coco:
        yield from (f"{prefix}{int(coco[1]):012d}.jpg" for prefix in _COCO_PREFIXES)
    if not image.lower().endswith(SUFFIXES):
        yield from (image + suffix for suffix in SUFFIXES)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _unpacked(questions: Sequence[Question], folder: Path) -> dict[str, str]:
    """The images that the questions hold, as files; their names by what the questions hold."""
    named = [question for question in questions if question.image and not _is_inline(question.image)]
    if named:
        raise UserError(
            f"{len(named)} of {len(questions)} questions name an image, such as {named[0].image!r}; give their folder with --images"
        )
    names = {}
    for image in dict.fromkeys(question.image for question in questions if question.image):
        name = f"{hashlib.sha256(image.encode()).hexdigest()[:32]}.image"
        names[image] = name
        if not (folder / name).is_file():
            try:
                write(folder / name, base64.b64decode(image, validate=True))
            except binascii.Error:
                continue  # the file is then missing, which is told
    return names


def _is_inline(image: str) -> bool:
    return len(image) >= _MIN_INLINE_CHARACTERS and "." not in image


def _checked(questions: Sequence[Question], source: BenchmarkImages, names: dict[str, str]) -> FoundImages:
    ids = {question.question_id: names[question.image] if question.image else NO_IMAGE for question in questions}
    images = list(dict.fromkeys(ids.values()))
    with ThreadPoolExecutor() as threads:  # Pillow decodes outside of Python's lock
        bad = {image_id: problem for image_id, problem in zip(images, threads.map(source.problem, images), strict=True) if problem}
    return FoundImages(source, ids, {one: bad[image_id] for one, image_id in ids.items() if image_id in bad})
