"""Find images of tests in other sets by content: a copy under another name, of another size or compressed harder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from actors.images import BadImageError, ImageSource
from loop.config.run_config import RunConfig
from loop.config.sections import Section
from loop.errors import printable
from loop.setup.data import RunData
from loop.setup.decontamination import is_drawn
from loop.setup.fingerprinting import fingerprints_of
from loop.setup.overlaps import KIND, image_locations
from loop.store.commits import Finding
from policies.decontamination.fingerprints import Fingerprint
from policies.decontamination.held_out import HeldOutImage, HeldOutImages

MAX_COMPARED = 2000
"""Images of a set that are compared, a few seconds of reading."""
_BLOCK = 100
"""Neighbouring images that are compared together: tables are read forward."""
_EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class _Compared:
    """Images of a set that were compared with those of tests."""

    name: str
    """As the config names it."""
    prints: Mapping[str, Fingerprint]
    """By image id."""
    location: Callable[[str], str]
    num_images: int
    num_unreadable: int = 0

    @property
    def num_not_compared(self) -> int:
        return self.num_images - len(self.prints)


def shared_content(data: RunData, *, with_unlabelled: bool = False) -> list[Finding]:
    """Findings about seed samples that a run leaves out, and about copies of images of tests in other sets: in the seed data, and, if
    `with_unlabelled`, in `image_sets`, whose images a run compares one by one before it uses them.

    Raises:
        UserError: an image of a test cannot be read, or no seed sample is left.
    """
    config = data.config
    if data.tested is None:
        return []
    others: dict[str, tuple[Section, ImageSource]] = {"seed_data": (config.seed_data.data, data.seed)}
    if with_unlabelled:
        others |= {f"image_sets.{number}": one for number, one in enumerate(zip(config.image_sets, data.unlabelled, strict=True))}
    return [*data.untested.findings, *copies(config, data.tested, others)]


def copies(config: RunConfig, tested: HeldOutImages, others: Mapping[str, tuple[Section, ImageSource]]) -> list[Finding]:
    """A finding for each test and each other set that have copies of the same pictures, and one for each set that is not wholly compared.

    Files at the same location are left to `loop.setup.overlaps`.

    Args:
        config: of the run.
        tested: the images of its tests.
        others: sets to look through, by their name in the config. Of a large one, `MAX_COMPARED` images are compared, in blocks that are
            spread over the set. Sets that draw their images are left out.
    """
    looked_at = [_looked_at(name, spec, source) for name, (spec, source) in others.items() if not is_drawn(spec)]
    by_set: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(tested.images):
        by_set[image.set_name].append(index)
    found = [finding for other in (*looked_at, *_decided_on(tested, by_set)) for finding in _copies(tested, by_set, other)]
    return [*found, *(_not_compared(one, config) for one in looked_at if one.num_not_compared)]


def _looked_at(name: str, spec: Section, source: ImageSource) -> _Compared:
    image_ids = source.image_ids()
    chosen = spread(image_ids)
    prints = dict(zip(chosen, fingerprints_of(source, chosen), strict=True))
    read = {image_id: one for image_id, one in prints.items() if not isinstance(one, BadImageError)}
    return _Compared(name, read, image_locations(spec), len(image_ids), len(prints) - len(read))


def spread(image_ids: Sequence[str]) -> list[str]:
    """All of the images, or `MAX_COMPARED` of them in blocks that are spread evenly."""
    if len(image_ids) <= MAX_COMPARED:
        return list(image_ids)
    starts = np.linspace(0, len(image_ids) - _BLOCK, MAX_COMPARED // _BLOCK).astype(int).tolist()
    return list(chain.from_iterable(image_ids[start : start + _BLOCK] for start in starts))


def _decided_on(tested: HeldOutImages, by_set: Mapping[str, Sequence[int]]) -> Iterator[_Compared]:
    """The acceptance sets, whose fingerprints are known: to be compared with held-out ones."""
    for name, indices in by_set.items():
        if name.startswith("acceptance_sets."):
            prints = {tested.images[index].image_id: tested.fingerprints[index] for index in indices}
            places = {tested.images[index].image_id: tested.images[index].location for index in indices}
            yield _Compared(name, prints, places.__getitem__, len(prints))


def _copies(tested: HeldOutImages, by_set: Mapping[str, Sequence[int]], other: _Compared) -> Iterator[Finding]:
    pairs: dict[str, dict[str, str]] = defaultdict(dict)
    for image_id, one in other.prints.items():
        for image in tested.same_as(one):
            if _is_test_of(image, other) and image.location != other.location(image_id):
                pairs[image.set_name].setdefault(image.image_id, image_id)
    for set_name, same in pairs.items():
        (test, copy), *_ = same.items()
        of = f" ({len(other.prints)} of its {other.num_images} images were compared)" if other.num_not_compared else ""
        message = (
            f"{other.name}{of} has copies of {len(same)} of the {len(by_set[set_name])} images of {set_name}, which should be kept apart "
            "from it"
        )
        example = printable(f"{copy} is the same picture as {test}")[:_EXAMPLE_CHARACTERS]
        yield Finding(kind=KIND, count=len(same), message=message, example=example)


def _is_test_of(image: HeldOutImage, other: _Compared) -> bool:
    """Whether the set of `image` is to be kept apart from another one. Two acceptance sets may share images."""
    return not (image.set_name.startswith("acceptance_sets.") and other.name.startswith("acceptance_sets."))


def _not_compared(one: _Compared, config: RunConfig) -> Finding:
    unreadable = f", {one.num_unreadable} of those looked at cannot be read" if one.num_unreadable else ""
    message = f"of the {one.num_images} images of {one.name} were not compared by content with those of tests{unreadable}"
    return Finding(kind="not_compared", count=one.num_not_compared, message=f"{message}; {_later(one.name, config)}")


def _later(name: str, config: RunConfig) -> str:
    """Which images of a set a run compares."""
    if name.startswith("image_sets.") and config.decontamination.images:
        return "a run compares each before it asks the model about it"
    return "a run compares those that a tested question is about" if config.decontamination.questions else "a run does not either"
