"""The contents of a run: its config and the parts built from it, its store, its images, and the rounds so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from actors.images import ImageSource
from loop.config.run_config import RunConfig
from loop.monitors.progress import RunProgress
from loop.run.retention import kept_copies
from loop.run.stages.known_texts import SeedTexts
from loop.setup.assembly import HeldOut, Policies
from loop.setup.data import RunData
from loop.setup.decontamination import compares_images
from loop.setup.overlaps import image_locations
from loop.setup.routing import image_set_name, run_images, seed_image_id
from loop.sources.routed import RoutedSource
from loop.store.commits import Finding, RoundCommit
from loop.store.run_store import Store
from policies.decontamination.held_out import HeldOutImages
from policies.records import TrainingSample


@dataclass
class Run:
    """A run without its actors: it can be built and tested without Ray."""

    config: RunConfig
    policies: Policies
    store: Store
    run_id: str
    progress: RunProgress
    data: RunData
    commits: list[RoundCommit] = field(default_factory=list)
    """Committed rounds so far; the driver appends."""
    findings: Sequence[Finding] = ()
    """Findings about the config, from before the run started."""

    @property
    def sets(self) -> dict[str, HeldOut]:
        """The held-out and acceptance sets, keyed as in predictions."""
        held_out = {f"held_out/{one.name}": one for one in self.data.held_out}
        return held_out | {f"acceptance/{one.name}": one for one in self.data.acceptance}

    @property
    def kept_checkpoints(self) -> list[str]:
        """See `loop.run.retention.kept_copies`."""
        return kept_copies(self.commits, self.config.overlap)

    def image_set(self, index: int) -> ImageSource:
        """The unlabelled images of round `index`."""
        return self.images.sources[image_set_name(self.config, self.policies.schedule, index)]

    @cached_property
    def images(self) -> RoutedSource:
        """All images of the run, labelled and unlabelled."""
        return run_images(self.data.seed, self.data.unlabelled)

    @cached_property
    def tested(self) -> HeldOutImages | None:
        """The images that the run is tested on; None if they are not compared with others."""
        if not compares_images(self.config):
            return None
        with self.progress.stage("fingerprint the images of tests"):
            return self.data.tested

    @cached_property
    def seed_samples(self) -> list[TrainingSample]:
        """The labelled samples that training replays."""
        return [_routed(sample) for sample in self.data.untested.samples]

    @cached_property
    def seed_texts(self) -> SeedTexts:
        """Questions and answers of the seed data, with the keys by which duplicates are found."""
        assert self.policies.similarity is not None
        return SeedTexts(self.seed_samples, self.policies.similarity, image_locations(self.config.seed_data.data))


def _routed(sample: TrainingSample) -> TrainingSample:
    """A sample of the seed data, with the ids that its images have among all images of the run."""
    further = tuple(map(seed_image_id, sample.further_images))
    return replace(sample, image_id=sample.image_id and seed_image_id(sample.image_id), further_images=further)
