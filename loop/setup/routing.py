"""All images of a run behind one source, and what an image is called there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from PIL import Image

from actors.images import BadImageError, ImageSource
from loop.config.run_config import RunConfig
from loop.errors import UserError, one_line
from loop.setup.assembly import build_images
from loop.sources.routed import RoutedSource, routed
from policies.registry import UnknownPolicyError
from policies.schedule import SCHEDULE_POLICIES, SchedulePolicy

_SEED_SET = "seed"


def run_images(seed: ImageSource, unlabelled: Iterable[ImageSource]) -> RoutedSource:
    """All images of a run: the labelled set `seed`, and `set0`, `set1`, ... as the config lists them."""
    return RoutedSource({_SEED_SET: seed, **{_set_name(number): source for number, source in enumerate(unlabelled)}})


def image_set_name(config: RunConfig, schedule: SchedulePolicy, round_index: int) -> str:
    """The unlabelled set, among all images of a run, that a round draws from."""
    return _set_name(schedule.image_set(round_index, len(config.image_sets)))


def routing(config: RunConfig, schedule: SchedulePolicy) -> Callable[[int, str], str]:
    """Maps the round of a record and the id of its image to the id of that image among all images of the run."""
    return lambda round_index, image_id: routed(image_set_name(config, schedule, round_index), image_id)


@dataclass(frozen=True)
class MissingSet:
    """In place of an image set that cannot be read any more."""

    reason: str

    def image_ids(self) -> list[str]:
        return []

    def open(self, image_id: str) -> Image.Image:
        raise BadImageError(f"{image_id}: {self.reason}")


def record_images(config: RunConfig) -> Callable[[int], ImageSource]:
    """Maps a round to the images that its records are about. Sets are opened when they are asked for; the images of one that was moved or
    removed are bad.

    Raises:
        UserError: the schedule of the config does not exist, or refuses its options.
    """
    try:
        schedule: SchedulePolicy = SCHEDULE_POLICIES.build(config.schedule.policy, config.schedule.options)
    except UnknownPolicyError as error:
        raise UserError(one_line(error)) from error

    @cache
    def opened(number: int) -> ImageSource:
        try:
            return build_images(config.image_sets[number])
        except UserError as error:
            return MissingSet(str(error))

    return lambda round_index: opened(schedule.image_set(round_index, len(config.image_sets)))


def seed_image_id(image_id: str) -> str:
    """The id of an image of the labelled set among all images of a run."""
    return routed(_SEED_SET, image_id)


def _set_name(number: int) -> str:
    return f"set{number}"
