"""Why samples are skipped: reasons, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SkipReason(StrEnum):
    """Why a sample was skipped."""

    BAD_IMAGE = "bad_image"
    NO_TURNS = "no_turns"
    SPECIAL_TOKEN = "special_token"
    ANSWER_CUT_OFF = "answer_cut_off"
    SEVERAL_IMAGES = "several_images"
    NO_IMAGE = "no_image"

    @property
    def explanation(self) -> str:
        """What is wrong, and how to fix it."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    SkipReason.BAD_IMAGE: "the image cannot be read; check the folder of the images and the files",
    SkipReason.NO_TURNS: "the conversation has no turns",
    SkipReason.SPECIAL_TOKEN: "the text contains a special token of the model; remove it",
    SkipReason.ANSWER_CUT_OFF: "image and question fill max_tokens, so that nothing of an answer is left; raise training.max_tokens",
    SkipReason.SEVERAL_IMAGES: "the model takes one image a conversation, and these have several; train them on a model that takes more",
    SkipReason.NO_IMAGE: "the model needs an image in every conversation, and these have none; train them on a model that does not",
}


@dataclass(frozen=True, slots=True)
class Skip:
    """One skipped sample."""

    reason: SkipReason
    message: str
    """Which sample it is and what is wrong; the same on every machine."""
    where: str = ""
    """Where this machine looked for its image."""


@dataclass(frozen=True, slots=True)
class SkippedSamples:
    """The samples of a job that were skipped for one reason."""

    reason: SkipReason
    num_samples: int
    """Each counted once."""
    example: str
    """`Skip.message` of the first."""
    where: str = ""

    def __str__(self) -> str:
        return f"{self.example} {self.where}".rstrip()
