"""Image sources: the protocols through which generators, correctors and trainers read images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from PIL import Image

from policies.decontamination.fingerprints import fingerprint
from policies.decontamination.held_out import HeldOutImages
from policies.records import Reason

if TYPE_CHECKING:
    from policies.records import HeldOutQuestion, TrainingSample


class BadImageError(ValueError):
    """An image cannot be read safely. It is skipped with this reason; the run goes on.

    The reason is stored in records, whose bytes must not depend on the machine. Anything that differs between machines (the image's
    path, a library's message that contains a path) goes into `where`.
    """

    rejects_as: ClassVar[Reason] = Reason.UNREADABLE_IMAGE
    """The reason of the records about the image."""

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(reason, where)
        self.reason, self.where = reason, where

    def __str__(self) -> str:
        return f"{self.reason} {self.where}".rstrip()


class LazyImage(Protocol):
    """An image that is opened when its pixels are needed, in any thread. A caller that holds it does not hold the pixels."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; opens the image if they are not known. Raises as `open` does."""
        ...

    def open(self) -> Image.Image:
        """The pixels, RGB.

        Raises:
            BadImageError: the image cannot be read.
            PolicyError: the code of a view failed.
        """
        ...


def opened(image: Image.Image | LazyImage) -> Image.Image:
    """The pixels of an image; raises as `LazyImage.open` does."""
    return image if isinstance(image, Image.Image) else image.open()


class HeldOutImageError(BadImageError):
    """An image is one of those that the model is tested on. It is skipped like a bad one."""

    rejects_as = Reason.HELD_OUT_IMAGE


class ImageSource(Protocol):
    """A set of images addressed by id. Instances are pickled and sent to actors: keep them small, and open files in `open`, which
    several threads may call at the same time."""

    def image_ids(self) -> list[str]:
        """All ids of the set, in a fixed order."""
        ...

    def open(self, image_id: str) -> Image.Image:
        """The image as RGB.

        Raises:
            BadImageError: the image is missing, corrupt, oversized or in an unsupported format.
        """
        ...


@dataclass(frozen=True)
class UntestedImages:
    """The images of a source that a model is not tested on."""

    source: ImageSource
    tested: HeldOutImages

    def image_ids(self) -> list[str]:
        """All ids of the source, those of tested images included."""
        return self.source.image_ids()

    def open(self, image_id: str) -> Image.Image:
        """As `ImageSource.open`; raises `HeldOutImageError` for an image that the model is tested on."""
        image = self.source.open(image_id)
        if same := self.tested.same_as(fingerprint(image)):
            raise HeldOutImageError(f"{image_id}: the same picture as {same[0]}")
        return image


@runtime_checkable
class FileSource(Protocol):
    """A source whose images are files; an export copies them unchanged."""

    def read_file(self, image_id: str) -> tuple[str, bytes]:
        """The name of the image's file, relative to its set, and its bytes.

        Raises:
            BadImageError: the image is missing or cannot be read.
        """
        ...


@runtime_checkable
class Oracle(Protocol):
    """A source that knows which answers are correct. Used to measure, never to decide."""

    def is_correct(self, image_id: str, question: str, answer: str) -> bool: ...


@runtime_checkable
class ObjectOracle(Protocol):
    """A source that knows which objects are in its images. Used to measure a guard of the acceptance policy."""

    def names_absent_object(self, image_id: str, question: str, answer: str) -> bool:
        """Whether the answer mentions an object that is not in the image."""
        ...


class LabelledSource(ImageSource, Protocol):
    """A set of images with questions and correct answers: seed data and held-out sets."""

    def training_samples(self, num_samples: int, seed: int) -> list[TrainingSample]:
        """A mix of VIG samples (instruction -> question and answer) and VIC samples (question -> answer)."""
        ...

    def questions(self, num_questions: int, seed: int) -> list[HeldOutQuestion]:
        """Held-out questions with their correct answers."""
        ...


@runtime_checkable
class ConversationSource(Protocol):
    """A labelled set of whole conversations, as LLaVA trains on: one sample has all answers of a conversation."""

    def conversations(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """`num_samples` conversations, each used once before any is repeated; `None`: all of them, or one per image."""
        ...


@runtime_checkable
class CaptionSource(Protocol):
    """A labelled set with captions, as used by LLaVA's first stage to align the projector."""

    def captions(self, num_samples: int | None, seed: int) -> list[TrainingSample]:
        """`num_samples` samples of one turn, a short instruction and a caption; each is used once before any is repeated. `None`: all
        of them, or one per image."""
        ...
