"""Find sets that share questions or images: a model that is tested on its training data looks better than it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.images import ImageSource, LabelledSource
from loop.config.run_config import RunConfig
from loop.config.sections import Section
from loop.errors import printable
from loop.setup.assembly import HeldOut
from loop.sources.labelled import LabelledData
from loop.store.commits import Finding

KIND = "overlap"
_EXAMPLE_CHARACTERS = 100


@dataclass(frozen=True)
class _Contents:
    """The content of a set, by keys that mean the same in every set."""

    name: str
    """As the config names it."""
    images: frozenset[str]
    questions: frozenset[tuple[str, str]] = frozenset()
    """Image and question; empty if the set has none, or draws new ones."""


def overlaps(
    config: RunConfig, seed_data: LabelledSource, tests: Mapping[tuple[str, str], HeldOut], unlabelled: Sequence[ImageSource]
) -> list[Finding]:
    """A finding for each pair of sets in a config that share what should be kept apart.

    Images are compared by location; `loop.setup.copies` compares them by content.

    Args:
        config: of the run.
        seed_data: its source.
        tests: held-out and acceptance sets by section and name.
        unlabelled: the sources of `image_sets`, in order.
    """
    specs = {"held_out": config.held_out, "acceptance_sets": config.acceptance_sets}
    asked = {key: _questions_of(f"{key[0]}.{key[1]}", specs[key[0]][key[1]].data, one) for key, one in tests.items()}
    trained = [_labelled("seed_data", config.seed_data.data, seed_data)]
    shown = [
        _Contents(f"image_sets.{n}", frozenset(map(image_locations(spec), one.image_ids())))
        for n, (spec, one) in enumerate(zip(config.image_sets, unlabelled, strict=True))
    ]
    decided = [one for (section, _), one in asked.items() if section == "acceptance_sets"]
    found: list[Finding] = []
    for (section, _), test in asked.items():
        others = [*trained, *shown, *(decided if section == "held_out" else ())]
        found += [finding for other in others for finding in _shared(test, other)]
    return found


def _shared(test: _Contents, other: _Contents) -> Iterator[Finding]:
    """What a held-out or acceptance set shares with another one: questions, or else images."""
    questions, images = test.questions & other.questions, test.images & other.images
    if questions:
        image, question = min(questions)
        yield _finding(test, other, len(questions), len(test.questions), "questions", f"{os.path.basename(image)}: {question}")
    elif images:
        yield _finding(test, other, len(images), len(test.images), "images", os.path.basename(min(images)))


def _finding(test: _Contents, other: _Contents, count: int, total: int, what: str, example: str) -> Finding:
    message = f"{other.name} has {count} of the {total} {what} of {test.name}, which should be kept apart from it"
    return Finding(kind=KIND, count=count, message=message, example=printable(example)[:_EXAMPLE_CHARACTERS])


def _questions_of(name: str, spec: Section, one: HeldOut) -> _Contents:
    key = image_locations(spec)
    return _asked(name, [(key(question.image_id), question.question) for question in one.questions])


def _labelled(name: str, spec: Section, source: LabelledSource) -> _Contents:
    key = image_locations(spec)
    if not isinstance(source, LabelledData):
        return _Contents(name, frozenset(map(key, source.image_ids())))
    return _asked(name, [(key(one), question) for record in source.records() for question, _ in record.turns for one in record.images])


def _asked(name: str, pairs: Sequence[tuple[str, str]]) -> _Contents:
    return _Contents(
        name, frozenset(image for image, _ in pairs), frozenset((image, " ".join(said.lower().split())) for image, said in pairs)
    )


def image_locations(spec: Section) -> Callable[[str], str]:
    """A function from an image id to its location. Ids of images without files are unique by themselves."""
    given = spec.model_dump(include={"images", "path"})
    folder = given.get("images") or given.get("path") or ""
    if not folder or "://" in folder:
        return lambda image_id: f"{folder}/{image_id}"
    root = os.path.realpath(folder)
    if os.path.isfile(root):  # one file of a set: ids begin with its name, as they do for its folder
        root = os.path.dirname(root)
    return lambda image_id: os.path.normpath(os.path.join(root, image_id))
