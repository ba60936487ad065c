"""`vigc run --dry-run`: check a config before it runs, if need be on another machine than the one it is for.

Mistakes in the config are errors, as in a run. What this machine lacks (the model, data, vLLM, CPUs, GPUs) is listed, because the run's
machine must have it; what is here is checked as a run would. Nothing is fetched or started.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import psutil
import torch

from cluster.resources.plan import ResourcePlan, plan_resources
from loop.config.engine_config import TransformersEngineConfig
from loop.config.run_config import HeldOutSet, RunConfig
from loop.config.sections import Section
from loop.errors import UserError
from loop.models.checks import check_model, check_trained_in_adapter, local_model
from loop.setup.assembly import (
    build_held_out,
    build_images,
    build_labelled,
    build_policies,
    check_held_out,
    resource_request,
)
from loop.setup.copies import shared_content
from loop.setup.data import build_data
from loop.setup.inert import no_effect, slow_model
from loop.setup.overlaps import overlaps
from loop.store.commits import Finding

_ADDRESSES = ("path", "images")
"""Keys of image sets and labelled sets that hold the location of their data."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Resources that a run will have. `None`: as many as it needs."""

    cpus: int | None = None
    gpus: int | None = None


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


def rehearse(config: RunConfig, assumed: Machine | None = None) -> Rehearsal:
    """Check a config against this machine.

    Args:
        config: of the run.
        assumed: the machine or cluster that the run is for; `None` is this machine, or the cluster that the config names, which is not
            contacted.

    Raises:
        UserError: the config, or data or a model that is here, is wrong; or the run does not fit into the assumed resources.
    """
    findings = no_effect(config, build_policies(config))
    plan = _plan(config, assumed)
    metrics: list[str] = []
    no_data = list(_check_data(config, metrics))
    if not no_data:
        data = build_data(config)
        findings += [*overlaps(config, data.seed, data.questions, data.unlabelled), *shared_content(data, with_unlabelled=True)]
    missing = [*no_data, *_check_model(config, findings), *_lacking(config, plan, assumed)]
    told = tuple(finding.line for finding in findings)
    return Rehearsal(tuple(_described(config, plan)), tuple(missing), tuple(metrics), told)


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


def _check_model(config: RunConfig, findings: list[Finding]) -> Iterator[str]:
    """Check the model if it is here, and note what is slow about it; yields what is missing."""
    has_vllm = config.engine.kind != "vllm" or find_spec("vllm") is not None
    if not has_vllm:
        yield "engine: vLLM is not installed here: `make install-vllm` on a CPU, `pip install -e .[gpu]` beside a GPU"
    folder = local_model(config.model_path)
    if folder is None:
        yield f"model: {config.model} is neither a folder here nor whole in Hugging Face's cache"
        return
    # Without vLLM the model can still be checked against its own classes.
    engine = config.engine if has_vllm else TransformersEngineConfig.model_validate({"dtype": config.engine.dtype})
    findings += slow_model(check_model(str(folder), engine, {"training": config.training.hyperparameters(num_samples=1)}))
    if config.transport == "adapter":
        check_trained_in_adapter(str(folder), config.training.frozen)


# ---- resources


def _plan(config: RunConfig, assumed: Machine | None) -> ResourcePlan:
    """The plan, checked against the assumed resources, or against those that the config gives to a local Ray."""
    machine, request = assumed or Machine(config.cluster.num_cpus), resource_request(config)
    try:
        plan = plan_resources(math.inf, math.inf, request)
        cpus = _total(plan, "CPU") if machine.cpus is None else machine.cpus
        gpus = _total(plan, "GPU") if machine.gpus is None else machine.gpus
        return plan_resources(cpus, gpus, request)
    except ValueError as error:
        raise UserError(str(error)) from error


def _lacking(config: RunConfig, plan: ResourcePlan, assumed: Machine | None) -> Iterator[str]:
    """Resources that a plan needs and this machine lacks, if the run is for this machine."""
    if assumed is not None or config.cluster.address is not None:
        return
    here = {"CPU": psutil.cpu_count() or 1 if config.cluster.num_cpus is None else math.inf, "GPU": torch.cuda.device_count()}
    for name, amount in here.items():
        needed = _total(plan, name)
        if needed > amount:
            yield f"cluster: {needed:g} {name}(s) are needed, and this machine has {amount:g}"


def _described(config: RunConfig, plan: ResourcePlan) -> Iterator[str]:
    where = "colocated" if plan.colocated else "disaggregated"
    sleep = "; engines sleep while ranks train" if config.cluster.sleep_while_training else ""
    yield f"{plan.num_engines} engine(s), {plan.trainer_ranks} trainer rank(s) and {plan.num_filters} filter(s), {where}{sleep}"
    bundles = Counter(tuple(sorted(bundle.items())) for bundle in plan.bundles)
    for bundle, count in bundles.items():
        yield f"{count} bundle(s) of {' and '.join(f'{amount:g} {name}(s)' for name, amount in bundle)}, each on one machine"
    yield f"{_total(plan, 'CPU'):g} CPU(s) and {_total(plan, 'GPU'):g} GPU(s) in all"


def _total(plan: ResourcePlan, name: str) -> float:
    return sum(bundle.get(name, 0.0) for bundle in plan.bundles)
