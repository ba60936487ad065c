"""What a run is tested on, and what that keeps out of its training: images, seed data and generated records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.images import BadImageError, ImageSource, LabelledSource
from loop.config.run_config import RunConfig
from loop.config.sections import Section
from loop.config.sets import WorldSet
from loop.errors import UserError, printable
from loop.setup.assembly import HeldOut, derived_seed, unreadable_image
from loop.setup.fingerprinting import fingerprints_of
from loop.setup.overlaps import image_locations
from loop.store.commits import Finding
from policies.decontamination.fingerprints import Fingerprint, Fingerprints
from policies.decontamination.held_out import HeldOutImage, HeldOutImages, HeldOutQuestionFilter, question_key
from policies.filtering.chain import FilterChain
from policies.generation.knowledge import questions_of
from policies.records import TrainingSample

_EXAMPLE_CHARACTERS = 100


def compares_images(config: RunConfig) -> bool:
    """Whether images of tests are compared with others: decontamination is on, and there are files on both sides."""
    switches = config.decontamination
    tests = [one.data for one in (*config.held_out.values(), *config.acceptance_sets.values())]
    others = [*config.image_sets, config.seed_data.data]
    return (switches.images or switches.questions) and not (all(map(is_drawn, tests)) or all(map(is_drawn, others)))


def is_drawn(spec: Section) -> bool:
    """Whether the images of a set are drawn from their ids, by which they are compared in place of their content."""
    return isinstance(spec, WorldSet)


def held_out_images(config: RunConfig, sets: Mapping[tuple[str, str], HeldOut]) -> HeldOutImages:
    """The images of all questions that a run asks about files, with their fingerprints.

    Args:
        config: of the run; some of its tests are about files.
        sets: held-out and acceptance sets by section and name.

    Raises:
        UserError: an image cannot be read.
    """
    specs = {"held_out": config.held_out, "acceptance_sets": config.acceptance_sets}
    images: list[HeldOutImage] = []
    found: list[Fingerprint] = []
    for (section, name), one in sets.items():
        spec = specs[section][name].data
        if not is_drawn(spec):
            images += _asked_about(f"{section}.{name}", one, image_locations(spec))
            found += _readable(one, [image.image_id for image in images[len(found) :]])
    return HeldOutImages(tuple(images), Fingerprints.of(found))


def _asked_about(set_name: str, one: HeldOut, location: Callable[[str], str]) -> list[HeldOutImage]:
    """The images of a set, each with its questions."""
    keys: dict[str, set[frozenset[str]]] = defaultdict(set)
    for question in one.questions:
        keys[question.image_id].add(question_key(question.question))
    return [HeldOutImage(set_name, image_id, location(image_id), frozenset(asked)) for image_id, asked in keys.items()]


def _readable(one: HeldOut, image_ids: Sequence[str]) -> Iterator[Fingerprint]:
    for found in fingerprints_of(one.source, image_ids):
        if isinstance(found, BadImageError):
            raise unreadable_image(one.name, str(found))
        yield found


def decontaminated(chain: FilterChain, config: RunConfig, tested: HeldOutImages | None) -> FilterChain:
    """The filters of a run; the last is against tested questions if records may be about tested images."""
    if tested is None or config.decontamination.images or not config.decontamination.questions:
        return chain
    return FilterChain([*chain.policies, HeldOutQuestionFilter(tested)])


@dataclass(frozen=True)
class UntestedSamples:
    """The samples of the seed data that are trained on."""

    samples: list[TrainingSample]
    findings: Sequence[Finding] = ()
    """One about those that are left out, if any."""


def seed_samples(config: RunConfig, source: LabelledSource, tested: HeldOutImages | None) -> UntestedSamples:
    """The samples that a run draws from its seed data `source`, without those that it is tested on if `decontamination.questions` is true.

    Raises:
        UserError: none is left.
    """
    spec = config.seed_data
    samples = source.training_samples(spec.num_samples, derived_seed(config.seed, 0, "seed data"))
    if tested is None or not config.decontamination.questions:
        return UntestedSamples(samples)
    return untested_samples(samples, source, image_locations(spec.data), tested)


def untested_samples(
    samples: Sequence[TrainingSample], source: ImageSource, location: Callable[[str], str], tested: HeldOutImages
) -> UntestedSamples:
    """The samples without those that ask a tested question about a tested image, in any of their turns.

    Args:
        samples: of the seed data.
        source: opens their images. Those of samples that ask a tested question are fingerprinted, others are not opened.
        location: of an image, see `loop.setup.overlaps.image_locations`.
        tested: what the run is tested on.

    Raises:
        UserError: none is left.
    """
    asked = [frozenset(map(question_key, questions_of([sample]))) & tested.questions for sample in samples]
    suspects = dict.fromkeys(image_id for sample, keys in zip(samples, asked, strict=True) if keys for image_id in sample.images)
    shown = _shown(list(suspects), source, location, tested)
    kept, left_out = [], []
    for sample, keys in zip(samples, asked, strict=True):
        is_tested = any(keys & image.questions for image_id in sample.images for image in shown.get(image_id, ()))
        (left_out if is_tested else kept).append(sample)
    if not left_out:
        return UntestedSamples(kept)
    if not kept:
        raise UserError(
            f"all {len(samples)} samples of seed_data ask what held-out or acceptance sets ask about the same images, such as "
            f"{_example(left_out[0])}; train on other data, or set decontamination.questions false"
        )
    message = f"of {len(samples)} samples of seed_data ask what held-out or acceptance sets ask about the same images, and are left out"
    return UntestedSamples(kept, [Finding(kind="held_out_questions", count=len(left_out), message=message, example=_example(left_out[0]))])


def _shown(
    image_ids: Sequence[str], source: ImageSource, location: Callable[[str], str], tested: HeldOutImages
) -> dict[str, list[HeldOutImage]]:
    """The tested images that images show, by location and by content. An image that cannot be read is compared by location alone."""
    shown = {image_id: list(tested.by_location.get(location(image_id), ())) for image_id in image_ids}
    for image_id, found in zip(image_ids, fingerprints_of(source, image_ids), strict=True):
        if not isinstance(found, BadImageError):
            shown[image_id] += tested.same_as(found)
    return shown


def _example(sample: TrainingSample) -> str:
    return printable(f"{sample.image_id}: {questions_of([sample])[0]}")[:_EXAMPLE_CHARACTERS]
