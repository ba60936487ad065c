"""Plans which actor gets which CPUs and GPUs: pure arithmetic, before any actor starts.

Colocated: generation and training alternate, so an engine, a trainer rank and the filters share one bundle (some CPUs, and one
GPU if GPUs are used), each with a fraction of it. Disaggregated: every actor has its own resources.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.errors import NotEnoughResourcesError

ENGINE_SHARE = 0.5
TRAINER_SHARE = 0.4
FILTER_SHARE = 0.1
"""Shares of a colocated bundle; they sum to one. Ray uses them only for placement: it neither pins nor throttles."""

SENDER_SHARE = 0.1
"""Share of the first trainer rank's GPU for the actor that sends weights from there."""

_RAY_RESOLUTION = 10_000
"""Ray counts resources in units of 1/10,000."""

_MAX_AMOUNT = 10**6
"""CPUs or GPUs, more than any cluster has, where what is available has no limit."""


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Resources requested by a run."""

    num_engines: int
    num_filters: int
    trainer_ranks: int
    cpus_per_actor: int
    """CPUs of an engine or a trainer rank; if colocated, of their common bundle."""
    use_gpus: bool
    """One GPU for each engine and each trainer rank; if colocated, for each bundle."""
    colocated: bool
    gpus_per_engine: int = 1
    """GPUs that share an engine's weights, if GPUs are used."""


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """Resources of each actor, and the bundles that hold them."""

    num_engines: int
    engine_cpus: float
    engine_gpus: float
    num_filters: int
    filter_cpus: float
    trainer_ranks: int
    trainer_cpus: float
    trainer_gpus: float
    sender_gpus: float
    colocated: bool
    bundles: tuple[dict[str, float], ...]

    def engine_bundle(self, index: int) -> int:
        assert 0 <= index < self.num_engines
        return index

    @property
    def rank_bundles(self) -> range:
        """The bundles with room for a trainer rank; if colocated, there may be more of them than ranks."""
        return range(len(self.bundles)) if self.colocated else range(self.num_engines, self.num_engines + self.trainer_ranks)

    @property
    def filter_bundles(self) -> range:
        """The bundles with room for a filter, or several."""
        return range(len(self.bundles)) if self.colocated else range(self.num_engines + self.trainer_ranks, len(self.bundles))


def plan_resources(available_cpus: float, available_gpus: float, requested: ResourceRequest) -> ResourcePlan:
    """Fits a request into the available resources.

    Raises:
        ValueError: a count is below one.
        NotEnoughResourcesError: it does not fit; the message says what was requested, what is available, and what to change.
    """
    _check_counts(requested)
    plan = _colocated(requested) if requested.colocated else _disaggregated(requested)
    cpus = sum(bundle["CPU"] for bundle in plan.bundles)
    gpus = sum(bundle.get("GPU", 0) for bundle in plan.bundles)
    if cpus > available_cpus or gpus > available_gpus:
        raise NotEnoughResourcesError(_explain(requested, cpus, gpus, available_cpus, available_gpus))
    return plan


def most_engines(available_cpus: float, available_gpus: float, requested: ResourceRequest, limit: int | None = None) -> int:
    """Largest number of engines with which a request fits into the available resources, at most `limit`, and at least what it asks for.

    Raises what `plan_resources` does if not even those fit.
    """
    available_cpus, available_gpus = min(available_cpus, _MAX_AMOUNT), min(available_gpus, _MAX_AMOUNT)
    plan_resources(available_cpus, available_gpus, requested)
    by_cpu = int(available_cpus // requested.cpus_per_actor)
    more = range(requested.num_engines + 1, min(by_cpu, by_cpu if limit is None else limit) + 1)

    def lacks_room(num_engines: int) -> bool:
        try:
            plan_resources(available_cpus, available_gpus, replace(requested, num_engines=num_engines))
        except NotEnoughResourcesError:
            return True
        return False

    return requested.num_engines + bisect(more, False, key=lacks_room)


def num_copies(bundle: Mapping[str, float], free: Mapping[str, float]) -> int:
    """How often a bundle fits into what a node has free."""
    return min(int((free.get(name, 0.0) + 1 / _RAY_RESOLUTION) // amount) for name, amount in bundle.items())


def plan_engines(
    available_cpus: float, available_gpus: float, num_engines: int, cpus_per_engine: int, gpus_per_engine: int
) -> ResourcePlan:
    """Plans only engines, each with its own resources.

    Raises:
        ValueError: a count is below one; `gpus_per_engine` may be 0.
        NotEnoughResourcesError: they do not fit; the message says what was requested, what is available, and what to change.
    """
    for name, value, least in (
        ("num_engines", num_engines, 1),
        ("cpus_per_engine", cpus_per_engine, 1),
        ("gpus_per_engine", gpus_per_engine, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    cpus, gpus = num_engines * cpus_per_engine, num_engines * gpus_per_engine
    if cpus > available_cpus or gpus > available_gpus:
        raise NotEnoughResourcesError(
            f"{num_engines} engine(s), {cpus_per_engine} CPU(s) and {gpus_per_engine} GPU(s) each, need {cpus} CPU(s) and {gpus} GPU(s); "
            f"there are {available_cpus:g} CPU(s) and {available_gpus:g} GPU(s). Ask for fewer engines, or join a larger cluster."
        )
    return ResourcePlan(
        num_engines=num_engines,
        engine_cpus=cpus_per_engine,
        engine_gpus=gpus_per_engine,
        num_filters=0,
        filter_cpus=0,
        trainer_ranks=0,
        trainer_cpus=0,
        trainer_gpus=0,
        sender_gpus=0,
        colocated=False,
        bundles=tuple(_bundle(cpus_per_engine, float(gpus_per_engine)) for _ in range(num_engines)),
    )


def plan_ranks(available_cpus: float, available_gpus: float, num_ranks: int, cpus_per_rank: int, *, use_gpus: bool) -> ResourcePlan:
    """Plans only trainer ranks, with one GPU each if `use_gpus`.

    Raises:
        ValueError: a count is below one.
        NotEnoughResourcesError: they do not fit.
    """
    if min(num_ranks, cpus_per_rank) < 1:
        raise ValueError(f"{num_ranks} trainer ranks with {cpus_per_rank} CPU(s) each were asked for; expected at least 1 of both")
    cpus, gpus = num_ranks * cpus_per_rank, num_ranks * int(use_gpus)
    if cpus > available_cpus or gpus > available_gpus:
        raise NotEnoughResourcesError(
            f"{num_ranks} trainer rank(s) need {cpus} CPU(s) and {gpus} GPU(s); there are {available_cpus:g} CPU(s) and "
            f"{available_gpus:g} GPU(s). Set trainer_ranks lower, or join a larger cluster."
        )
    return ResourcePlan(
        num_engines=0, engine_cpus=0, engine_gpus=0, num_filters=0, filter_cpus=0,
        trainer_ranks=num_ranks, trainer_cpus=cpus_per_rank, trainer_gpus=float(use_gpus), sender_gpus=0, colocated=False,
        bundles=tuple(_bundle(cpus_per_rank, float(use_gpus)) for _ in range(num_ranks)),
    )  # fmt: skip


def _check_counts(requested: ResourceRequest) -> None:
    for name in ("num_engines", "num_filters", "trainer_ranks", "cpus_per_actor", "gpus_per_engine"):
        if getattr(requested, name) < 1:
            raise ValueError(f"{name} is {getattr(requested, name)}; expected at least 1")
    if requested.colocated and requested.gpus_per_engine > 1:
        raise ValueError(f"{requested.gpus_per_engine} GPUs per engine cannot be shared with trainer ranks; do not colocate them")


def _colocated(requested: ResourceRequest) -> ResourcePlan:
    num_bundles = max(requested.num_engines, requested.trainer_ranks)
    cpus, gpus = requested.cpus_per_actor, float(requested.use_gpus)
    filters_per_bundle = math.ceil(requested.num_filters / num_bundles)
    return ResourcePlan(
        num_engines=requested.num_engines,
        engine_cpus=ENGINE_SHARE * cpus,
        engine_gpus=ENGINE_SHARE * gpus,
        num_filters=requested.num_filters,
        filter_cpus=math.floor(FILTER_SHARE * cpus / filters_per_bundle * _RAY_RESOLUTION) / _RAY_RESOLUTION,
        trainer_ranks=requested.trainer_ranks,
        trainer_cpus=TRAINER_SHARE * cpus,
        trainer_gpus=TRAINER_SHARE * gpus,
        sender_gpus=SENDER_SHARE * gpus,
        colocated=True,
        # Whole GPUs per bundle, even if its actors use less: with fractions Ray could pack two engines on one GPU.
        bundles=tuple(_bundle(cpus, gpus) for _ in range(num_bundles)),
    )


def _disaggregated(requested: ResourceRequest) -> ResourcePlan:
    cpus, gpus = requested.cpus_per_actor, float(requested.use_gpus)
    engine_gpus = gpus * requested.gpus_per_engine
    engines = (_bundle(cpus, engine_gpus) for _ in range(requested.num_engines))
    trainers = (_bundle(cpus, gpus) for _ in range(requested.trainer_ranks))
    filters = (_bundle(1, 0) for _ in range(requested.num_filters))
    return ResourcePlan(
        num_engines=requested.num_engines,
        engine_cpus=cpus,
        engine_gpus=engine_gpus,
        num_filters=requested.num_filters,
        filter_cpus=1,
        trainer_ranks=requested.trainer_ranks,
        trainer_cpus=cpus,
        trainer_gpus=(1 - SENDER_SHARE) * gpus,
        sender_gpus=SENDER_SHARE * gpus,
        colocated=False,
        bundles=(*engines, *trainers, *filters),
    )


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": float(cpus), "GPU": gpus} if gpus else {"CPU": float(cpus)}


def _explain(requested: ResourceRequest, cpus: float, gpus: float, available_cpus: float, available_gpus: float) -> str:
    mode = "colocated" if requested.colocated else "disaggregated"
    return (
        f"{requested.num_engines} engine(s), {requested.trainer_ranks} trainer rank(s) and {requested.num_filters} filter(s), {mode}, "
        f"{requested.cpus_per_actor} CPU(s) per actor, need {cpus:g} CPU(s) and {gpus:g} GPU(s); "
        f"there are {available_cpus:g} CPU(s) and {available_gpus:g} GPU(s). "
        f"{_advice(requested, gpus > available_gpus, available_cpus, available_gpus)}"
    )


def _advice(requested: ResourceRequest, lacks_gpus: bool, available_cpus: float, available_gpus: float) -> str:
    if lacks_gpus and available_gpus < 1:
        return "Turn GPUs off, or join a cluster that has some."
    if not requested.colocated:
        return "Colocate engines and trainer ranks, ask for fewer of them, or join a larger cluster."
    bundles_by_cpu = available_cpus // requested.cpus_per_actor
    fits = int(min(bundles_by_cpu, available_gpus) if requested.use_gpus else bundles_by_cpu)
    if fits < 1:
        return f"Lower cpus_per_actor to at most {max(1, int(available_cpus))}, or join a larger cluster."
    names = [name for name in ("num_engines", "trainer_ranks") if getattr(requested, name) > fits]
    return f"Set {' and '.join(names)} to at most {fits}, or join a larger cluster."
