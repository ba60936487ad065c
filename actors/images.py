"""Where images come from: the protocol that generators, correctors and trainers read pictures through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL import Image

    from policies.records import HeldOutQuestion, TrainingSample


class BadImageError(ValueError):
    """An image cannot be read safely. It is set aside with this reason; it stops nothing.

    The reason is kept on records, whose bytes are the same wherever they are made: what differs between machines (where the image was
    looked for, a library's text that holds a path) goes into `where`.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(reason, where)
        self.reason, self.where = reason, where

    def __str__(self) -> str:
        return f"{self.reason} {self.where}".rstrip()


class ImageSource(Protocol):
    """A set of images addressed by id. Instances are pickled to actors: keep them small, open files in `open`."""

    def image_ids(self) -> list[str]:
        """All ids of the set, in a fixed order."""
        ...

    def open(self, image_id: str) -> Image.Image:
        """The image as RGB.

        Raises:
            BadImageError: the image is missing, corrupt, oversized or of a format that is not read.
        """
        ...


@runtime_checkable
class FileSource(Protocol):
    """A source whose images are files: an export gives them away as they are."""

    def read_file(self, image_id: str) -> tuple[str, bytes]:
        """The name of the image's file, relative to its set, and its bytes.

        Raises:
            BadImageError: the image is missing or cannot be read.
        """
        ...


@runtime_checkable
class Oracle(Protocol):
    """A source that knows the truth about its images. Used to measure, never to decide."""

    def is_correct(self, image_id: str, question: str, answer: str) -> bool: ...


@runtime_checkable
class ObjectOracle(Protocol):
    """A source that knows which objects are in its images. A guard of the acceptance policy is measured with it."""

    def names_absent_object(self, image_id: str, question: str, answer: str) -> bool:
        """Whether the answer tells of an object that is not in the image."""
        ...


class LabelledSource(ImageSource, Protocol):
    """A set of images with questions and right answers: the seed data, and the held-out sets."""

    def training_samples(self, num_samples: int, seed: int) -> list[TrainingSample]:
        """A mix of VIG samples (instruction -> question and answer) and VIC samples (question -> answer)."""
        ...

    def questions(self, num_questions: int, seed: int) -> list[HeldOutQuestion]:
        """Held-out questions with their right answers."""
        ...


@runtime_checkable
class ConversationSource(Protocol):
    """A labelled set whose conversations can be trained on whole, as LLaVA does, every answer of one in one sample."""

    def conversations(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """So many conversations, each used once before any is used again; `None`: as many as there are, or one per image."""
        ...


@runtime_checkable
class CaptionSource(Protocol):
    """A labelled set with captions, as LLaVA's first stage aligns the projector on."""

    def captions(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """So many samples of one turn, a short instruction and a caption; each is used once before any is used again. `None`: as many
        as there are, or one per image."""
        ...
