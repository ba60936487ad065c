"""What a model is tested on: the images of held-out and acceptance sets, with the questions about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from policies.answers.content_words import words_of
from policies.decontamination.fingerprints import Fingerprint, Fingerprints, fingerprint
from policies.records import Reason, Record

if TYPE_CHECKING:
    from PIL import Image

_IGNORED_WORDS = words_of("a an the this that these those in of please image picture photo photograph")
"""Words that do not make another question about the same image."""


def question_key(question: str) -> frozenset[str]:
    """Equal for questions that are the same or nearly so: case, punctuation, plural s, order, articles and words for the image itself do
    not count."""
    return frozenset(words_of(question) - _IGNORED_WORDS)


@dataclass(frozen=True, slots=True)
class HeldOutImage:
    """An image of a held-out or acceptance set."""

    set_name: str
    """As the config names it: `held_out.NAME`."""
    image_id: str
    location: str
    """Where it is, the same for all sets. Never in a record, because it differs between machines."""
    questions: frozenset[frozenset[str]]
    """The keys of the questions that are asked about it."""

    def __str__(self) -> str:
        return f"{self.image_id} of {self.set_name}"


@dataclass(frozen=True)
class HeldOutImages:
    """All images that a run is tested on, at least one; sent to each engine once."""

    images: tuple[HeldOutImage, ...]
    fingerprints: Fingerprints
    """In the order of `images`."""

    def same_as(self, one: Fingerprint) -> list[HeldOutImage]:
        """The tested images that show the same picture."""
        return [self.images[index] for index in self.fingerprints.same_as(one)]

    @cached_property
    def questions(self) -> frozenset[frozenset[str]]:
        """The keys of all questions."""
        return frozenset().union(*(image.questions for image in self.images))

    @cached_property
    def by_location(self) -> dict[str, list[HeldOutImage]]:
        """The images at each location."""
        found: dict[str, list[HeldOutImage]] = {}
        for image in self.images:
            found.setdefault(image.location, []).append(image)
        return found


class HeldOutQuestionFilter:
    """A filter against records that ask a tested question about a tested image."""

    name = "held_out_questions"
    needs_image = True

    def __init__(self, tested: HeldOutImages) -> None:
        self._tested = tested

    def judge(self, records: Sequence[Record], open_image: Callable[[str], Image.Image]) -> list[Reason | None]:
        return [Reason.HELD_OUT_QUESTION if self._is_tested(record, open_image) else None for record in records]

    def _is_tested(self, record: Record, open_image: Callable[[str], Image.Image]) -> bool:
        key = question_key(record.question)
        if key not in self._tested.questions:  # saves opening most images
            return False
        return any(key in image.questions for image in self._tested.same_as(fingerprint(open_image(record.image_id))))
