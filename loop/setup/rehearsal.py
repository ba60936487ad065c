"""`vigc run --dry-run`: check a config before it runs, if need be on another machine than the one it is for.

Mistakes in the config are errors, as in a run. What this machine lacks (the model, data, vLLM, CPUs, GPUs) is listed, because the run's
machine must have it; what is here is checked as a run would. Nothing is fetched or started.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from cluster.planning.packing import NodeResources, amounts_of, described
from cluster.resources.plan import ResourcePlan
from loop.config.engine_config import TransformersEngineConfig
from loop.config.run_config import HeldOutSet, RunConfig
from loop.config.sections import Section
from loop.errors import UserError
from loop.models.checks import check_trained_in_adapter, model_check
from loop.models.files import local_model
from loop.setup.assembly import (
    build_held_out,
    build_images,
    build_labelled,
    build_policies,
    check_held_out,
)
from loop.setup.copies import shared_content
from loop.setup.data import build_data
from loop.setup.inert import no_effect, slow_model
from loop.setup.overlaps import overlaps
from loop.setup.planning import THIS_MACHINE, node_shares, plan_lines, planned, this_machine
from loop.store.commits import Finding

_ADDRESSES = ("path", "images")
"""Keys of image sets and labelled sets that hold the location of their data."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The result of a dry run."""

    plan: tuple[str, ...]
    """Actors, and the resources reserved for them."""
    missing: tuple[str, ...]
    """What this machine, or the one that the run is for, still has to provide."""
    metrics: tuple[str, ...] = ()
    """How answers are scored, for each set of questions whose data are here."""
    findings: tuple[str, ...] = ()
    """What works but was probably not intended."""


def rehearse(config: RunConfig, assumed: Sequence[NodeResources] | None = None) -> Rehearsal:
    """Check a config against this machine.

    Args:
        config: of the run.
        assumed: the nodes that the run is for; `None` is this machine, or the cluster that the config names, which is not contacted.

    Raises:
        UserError: the config, or data or a model that is here, is wrong; or the run does not fit into the assumed resources.
    """
    findings = no_effect(config, build_policies(config))
    plan = _plan(config, assumed)
    metrics: list[str] = []
    with ExitStack() as running:
        no_model, slow = _begin_check(config, running)
        no_data = list(_check_data(config, metrics))
        if not no_data:
            data = build_data(config)
            findings += [*overlaps(config, data.seed, data.questions, data.unlabelled), *shared_content(data, with_unlabelled=True)]
        findings += slow()
    missing = [*no_data, *no_model, *_lacking(config, plan, assumed)]
    told = tuple(finding.line for finding in findings)
    shares = () if assumed is None else _shares(plan)
    return Rehearsal((*plan_lines(config, plan), *shares), tuple(missing), tuple(metrics), told)


# ---- data


def _check_data(config: RunConfig, metrics: list[str]) -> Iterator[str]:
    """Build the sets whose data are here, as `driver.check` does, and note their metrics; yields what is missing."""
    for where, spec, build in _sets(config, metrics):
        absent = [address for name in _ADDRESSES if (address := str(getattr(spec, name, None) or "")) and _is_absent(address)]
        yield from (f"{where}: {address} is not on this machine" for address in absent)
        if not absent:
            build()


def _sets(config: RunConfig, metrics: list[str]) -> Iterator[tuple[str, Section, Callable[[], object]]]:
    """Every set of a config: its key, its section, and a function that checks it."""
    for number, images in enumerate(config.image_sets):
        yield f"image_sets.{number}", images, partial(build_images, images)
    yield "seed_data", config.seed_data.data, partial(build_labelled, config.seed_data.data)
    questions: Mapping[str, Mapping[str, HeldOutSet]] = {"held_out": config.held_out, "acceptance_sets": config.acceptance_sets}
    for section, sets in questions.items():
        for name, one in sets.items():
            yield f"{section}.{name}", one.data, partial(_check_questions, section, name, one, config.seed, metrics)


def _check_questions(section: str, name: str, spec: HeldOutSet, seed: int, metrics: list[str]) -> None:
    built = build_held_out({name: spec}, seed)
    check_held_out(built)
    metrics += [f"{section}.{one.described}" for one in built]


def _is_absent(address: str) -> bool:
    """Whether a path does not exist; for URIs and patterns only their reader can tell."""
    return not ("://" in address or any(mark in address for mark in "*?{[") or os.path.exists(address))


# ---- the model


def _begin_check(config: RunConfig, running: ExitStack) -> tuple[list[str], Callable[[], list[Finding]]]:
    """Begin to check the model, if it is here, in a process that ends with `running`; returns what is missing, and a function that waits
    for the result: what is slow about the model."""
    missing: list[str] = []
    has_vllm = config.engine.kind != "vllm" or find_spec("vllm") is not None
    if not has_vllm:
        missing.append("engine: vLLM is not installed here: `make install-vllm` on a CPU, `pip install -e .[gpu]` beside a GPU")
    folder = local_model(config.model_path)
    if folder is None:
        missing.append(f"model: {config.model} is neither a folder here nor whole in Hugging Face's cache")
        return missing, list
    # Without vLLM the model can still be checked against its own classes.
    engine = config.engine if has_vllm else TransformersEngineConfig.model_validate({"dtype": config.engine.dtype})
    report = running.enter_context(model_check(str(folder), engine, {"training": config.training.hyperparameters(num_samples=1)}))

    def slow() -> list[Finding]:
        found = slow_model(report())
        if config.transport == "adapter":
            check_trained_in_adapter(str(folder), config.training.frozen)
        return found

    return missing, slow


# ---- resources


def _plan(config: RunConfig, assumed: Sequence[NodeResources] | None) -> ResourcePlan:
    """The plan, checked against the assumed nodes, or against the CPUs that the config gives to a local Ray. With `num_engines: auto`, it
    has as many engines as there is room for, where that is known."""
    if assumed is None and config.cluster.num_engines == "auto" and config.cluster.address is None:
        with suppress(UserError):  # what this machine lacks is listed
            return planned(config, [this_machine(config.cluster)])
    if assumed is None:
        cpus = math.inf if config.cluster.num_cpus is None else config.cluster.num_cpus
        assumed = [NodeResources(THIS_MACHINE, cpus, math.inf)]
    return planned(config, assumed)


def _lacking(config: RunConfig, plan: ResourcePlan, assumed: Sequence[NodeResources] | None) -> Iterator[str]:
    """Resources that a plan needs and this machine lacks, if the run is for this machine."""
    if assumed is not None or config.cluster.address is not None:
        return
    here = this_machine(config.cluster).amounts
    for name, needed in amounts_of(plan.bundles).items():
        if needed > here[name]:
            yield f"cluster: {needed:g} {name}(s) are needed, and this machine has {here[name]:g}"


def _shares(plan: ResourcePlan) -> Iterator[str]:
    """What each node gets, in words."""
    for share in node_shares(plan):
        parts = {"engines": share.engines, "trainer ranks": share.ranks, "filters": share.filters}
        given = ", ".join(f"{name} {numbers}" for name, numbers in parts.items() if numbers)
        yield f"{share.node.name}: {given or 'nothing'}; {described(share.free.amounts) or 'nothing'} free"
