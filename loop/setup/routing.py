"""All images of a run behind one source, and what an image is called there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from actors.images import ImageSource
from loop.config.run_config import RunConfig
from loop.sources.routed import RoutedSource, routed
from policies.schedule import SchedulePolicy

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


def seed_image_id(image_id: str) -> str:
    """The id of an image of the labelled set among all images of a run."""
    return routed(_SEED_SET, image_id)


def _set_name(number: int) -> str:
    return f"set{number}"
