"""The images of a benchmark's questions: found in a folder by their usual names, drawn from an embedded world, or unpacked from the
benchmark's table."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from actors.images import ImageSource
from loop.errors import UserError
from loop.sources.folder import SUFFIXES, open_image
from loop.sources.reading.first_images import problem_of
from loop.sources.worlds.build import EXAMPLES, named_images, names_world
from loop.store.files import write
from policies.benchmarks import Question

NO_IMAGE = ""
_BLANK_SIZE, _MID_GREY = (336, 336), (128, 128, 128)
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{1,12})(?:\.jpe?g)?", re.ASCII | re.IGNORECASE)
_COCO_PREFIXES = ("", "COCO_val2014_", "COCO_train2014_", "COCO_test2015_")
_MIN_INLINE_CHARACTERS = 100
"""A text without a dot that is at least this long is not a file name but the image itself, in base64."""


@dataclass(frozen=True, slots=True)
class BenchmarkImages:
    """Opens the images found by `find_images`. Engines require an image in every request, so a question without one gets a grey image."""

    opens: Callable[[str], Image.Image]
    """Opens an image by its name in a folder or a world, as `ImageSource.open`."""

    def image_ids(self) -> list[str]:
        """Empty: images of a benchmark are listed by its questions."""
        return []

    def open(self, image_id: str) -> Image.Image:
        """See `ImageSource.open`."""
        if image_id == NO_IMAGE:
            return Image.new("RGB", _BLANK_SIZE, _MID_GREY)
        return self.opens(image_id)


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The result of `find_images`."""

    source: ImageSource
    ids: dict[str, str]
    """Question id -> image id; `NO_IMAGE` for a question without an image."""
    problems: dict[str, str]
    """Question id -> why its image cannot be used."""


def find_images(questions: Sequence[Question], images: str | None, unpack_into: Path) -> FoundImages:
    """Find the image of every question, and open each once to check it.

    Args:
        questions: as read by the benchmark.
        images: a folder, a world as `loop.sources.worlds.build.named_images` reads it, or None if the questions contain their images or
            have none.
        unpack_into: folder for images contained in the questions.

    Raises:
        UserError: questions name images and no folder is given, the folder does not exist, or the text about a world is invalid.
    """
    if images is None:
        return _checked(questions, BenchmarkImages(partial(open_image, unpack_into)), _unpacked(questions, unpack_into))
    if names_world(images):
        world = named_images(images, "--images")
        return _checked(questions, BenchmarkImages(world.open), {question.image: question.image for question in questions})
    folder = Path(images).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"image folder {images} does not exist; expected a folder of images, or {' or '.join(EXAMPLES)}")
    names = {}
    for question in questions:
        found = next((name for name in candidate_names(question) if _is_file(folder / name)), None)
        names.setdefault(question.image, found or question.image)
    return _checked(questions, BenchmarkImages(partial(open_image, folder)), names)


def candidate_names(question: Question) -> Iterator[str]:
    """Possible file names of a question's image, most likely first: as given; in a folder of the question, as in ScienceQA; in a folder
    of the task's images, as in MME; COCO's name for an image id; with a suffix."""
    image, own = question.image, question.question_id
    yield image
    for folder in (own, f"{question.split}/{own}" if question.split else own):
        yield f"{folder}/image.png" if image == own else f"{folder}/{image}"
    task, _, name = image.rpartition("/")
    if task:
        yield f"{task}/images/{name}"
    coco = _COCO_NAME.fullmatch(image)
    if coco:
        yield from (f"{prefix}{int(coco[1]):012d}.jpg" for prefix in _COCO_PREFIXES)
    if not image.lower().endswith(SUFFIXES):
        yield from (image + suffix for suffix in SUFFIXES)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long or contains a NUL
        return False


def _unpacked(questions: Sequence[Question], folder: Path) -> dict[str, str]:
    """Write the images contained in the questions to files; returns base64 text -> file name."""
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
                continue  # the file is then missing, which is reported
    return names


def _is_inline(image: str) -> bool:
    return len(image) >= _MIN_INLINE_CHARACTERS and "." not in image


def _checked(questions: Sequence[Question], source: BenchmarkImages, names: dict[str, str]) -> FoundImages:
    ids = {question.question_id: names[question.image] if question.image else NO_IMAGE for question in questions}
    images = list(dict.fromkeys(ids.values()))
    with ThreadPoolExecutor() as threads:  # Pillow releases the GIL while decoding
        bad = {
            image_id: problem for image_id, problem in zip(images, threads.map(partial(problem_of, source), images), strict=True) if problem
        }
    return FoundImages(source, ids, {one: bad[image_id] for one, image_id in ids.items() if image_id in bad})
