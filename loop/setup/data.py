"""The data of a run: the sets that its config names, and what a start has found out about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from actors.images import ImageSource, LabelledSource
from loop.config.run_config import RunConfig
from loop.setup.assembly import HeldOut, build_held_out, build_images, build_labelled
from loop.setup.decontamination import UntestedSamples, compares_images, held_out_images, seed_samples
from policies.decontamination.held_out import HeldOutImages


@dataclass(frozen=True)
class RunData:
    """The sources of a run. They are built once per start: annotations of millions of images take seconds to read. Images of tests are
    fingerprinted, and seed samples are drawn, once as well: the check of a config and the run use the same."""

    config: RunConfig
    unlabelled: tuple[ImageSource, ...]
    """As `image_sets` lists them."""
    seed: LabelledSource
    held_out: tuple[HeldOut, ...]
    acceptance: tuple[HeldOut, ...]

    @property
    def questions(self) -> dict[tuple[str, str], HeldOut]:
        """All sets of questions, by section of the config and name."""
        sections = {"held_out": self.held_out, "acceptance_sets": self.acceptance}
        return {(section, one.name): one for section, sets in sections.items() for one in sets}

    @cached_property
    def tested(self) -> HeldOutImages | None:
        """The images that the run is tested on; None if they are not compared with others. Raises `UserError` for an unreadable one."""
        return held_out_images(self.config, self.questions) if compares_images(self.config) else None

    @cached_property
    def untested(self) -> UntestedSamples:
        """The samples of the seed data that are trained on. Raises `UserError` if none is left."""
        return seed_samples(self.config, self.seed, self.tested)


def build_data(config: RunConfig) -> RunData:
    """All data of a run; raises `UserError` for a set that cannot be used."""
    return RunData(
        config,
        unlabelled=tuple(map(build_images, config.image_sets)),
        seed=build_labelled(config.seed_data.data),
        held_out=tuple(build_held_out(config.held_out, config.seed)),
        acceptance=tuple(build_held_out(config.acceptance_sets, config.seed)),
    )
