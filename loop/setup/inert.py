"""Find what has no effect in a config: filters that can reject nothing, and keys that nothing reads. Each is a finding, not an error."""

from __future__ import annotations

from collections.abc import Iterator

from loop.config.run_config import RunConfig
from loop.setup.assembly import Policies
from loop.store.commits import Finding
from policies.errors import running
from policies.filtering.chain import MaybeIdleFilter, Workload
from policies.generation.knowledge import is_knowledge
from policies.training.mixing import Replay
from policies.training.selection import TopShare

KIND = "no_effect"


def no_effect(config: RunConfig, policies: Policies) -> list[Finding]:
    """A finding for each part of the config that has no effect on a run."""
    found = [
        *_filters(config, policies), *_generation(config), *_mean_teacher(config), *_image_sets(config, policies),
        *_choosing(config, policies),
    ]  # fmt: skip
    return [Finding(kind=KIND, count=1, message=text) for text in found]


def slow_model(what: str) -> list[Finding]:
    """A finding about the way in which the engine runs the model, if `check_model` has found it slow."""
    return [Finding(kind="slow_model", count=1, message=what)] if what else []


def _filters(config: RunConfig, policies: Policies) -> Iterator[str]:
    workload = Workload(config.generation.num_per_image, _types(config), config.generation.max_new_tokens, policies.correction)
    for name, policy in zip(policies.filters.names, policies.filters.policies, strict=True):
        if isinstance(policy, MaybeIdleFilter):
            with running(f"filter {name!r}"):
                why = policy.idle(workload)
            if why:
                yield f"filter {name} can reject nothing: {why}"


def _generation(config: RunConfig) -> Iterator[str]:
    generation, types = config.generation, _types(config)
    if generation.temperature == 0 and generation.top_p < 1:
        yield f"generation.top_p {generation.top_p:g} does nothing at temperature 0, which is greedy"
    if generation.temperature == 0 and generation.num_per_image > len(types) and not any(map(is_knowledge, types)):
        yield (
            f"generation.num_per_image {generation.num_per_image} at temperature 0 writes the same again: there are {len(types)} question "
            "type(s); sample at a temperature above 0"
        )


def _mean_teacher(config: RunConfig) -> Iterator[str]:
    decay = config.generation.mean_teacher_decay
    if decay is not None and config.rounds == 1:
        yield f"generation.mean_teacher_decay {decay:g} does nothing with rounds 1: the seed model writes the first round"


def _image_sets(config: RunConfig, policies: Policies) -> Iterator[str]:
    num_sets = len(config.image_sets)
    drawn = {policies.schedule.image_set(index, num_sets) for index in range(1, config.rounds + 1)}
    for number in range(num_sets):
        if number not in drawn:
            yield f"image_sets.{number} is drawn from by none of {config.rounds} round(s); raise rounds, or leave it out"


def _choosing(config: RunConfig, policies: Policies) -> Iterator[str]:
    selection, mixing = policies.selection, policies.mixing
    if config.overlap and config.rounds == 1:
        yield "overlap 1 does nothing with rounds 1: there is no next round to write ahead"
    if isinstance(selection, TopShare) and selection.share == 1 and not selection.balance_types:
        yield "selection top_share with share 1 takes every accepted record, as `all` does; lower its share"
    if not isinstance(mixing, Replay):
        return
    if mixing.seed_share == 1:
        yield "mixing.replay.seed_share 1 trains on seed data alone: nothing that the loop generates is used; lower it"
    if config.rounds == 1 and mixing.newest_share is not None:
        yield f"mixing.replay.newest_share {mixing.newest_share:g} does nothing with rounds 1: all that is generated is of the newest round"


def _types(config: RunConfig) -> frozenset[str]:
    return frozenset(str(name) for name, share in config.generation.type_mix.items() if share > 0)
