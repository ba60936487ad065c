"""The live parts of a run: engines, filter tasks and trainer ranks, and how a round starts, swaps and pauses them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.engines import EngineSpec
from actors.engines.base import WeightUpdate
from actors.filter import filter_shard
from actors.folders import RemoteOutput
from actors.shards import Shard
from actors.trainer import TrainerRank
from actors.training.job import TrainingJob, TrainingResult
from cluster.errors import NotEnoughResourcesError
from cluster.fleet.fleet import Fleet
from cluster.fleet.tasks import StatelessTasks
from cluster.fleet.weights import prepare
from cluster.planning.packing import NodeResources
from cluster.resources.connect import ClusterInfo
from cluster.resources.joining import NodeGate
from cluster.resources.node_report import versions
from cluster.resources.placement import Admits, EngineRange, Placement, reserve
from cluster.resources.plan import plan_resources
from cluster.training.averaging import average
from cluster.training.group import Bounds, RankOptions, TrainerGroup
from loop.config.engine_config import ClusterConfig
from loop.config.run_config import RunConfig
from loop.config.sets import image_paths
from loop.models.serving import engine_fleet, probe_of
from loop.monitors.progress import Stage
from loop.run.connection import connected_for
from loop.run.contents import Run
from loop.run.models import Model
from loop.setup.assembly import resource_request
from loop.setup.decontamination import decontaminated
from loop.setup.nodes import check_nodes, wrong_here
from loop.store.commits import Finding, checkpoint_name
from loop.store.run_store import checkpoint_path

log = logging.getLogger(__name__)

_SHUTDOWN_S = 30.0
_MAX_UNFINISHED_PER_FILTER = 3
"""One that runs, and two that wait for it."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds of work, since the workers were opened."""

    engines_s: float
    """In which engines had a task, summed over the engines."""
    trainer_s: float
    """In which the trainer's ranks had a job."""


@dataclass
class Workers:
    """Actors and tasks of a run, created by `open_workers`. The actors start when the first model is served."""

    run: Run
    fleet: Fleet
    filters: StatelessTasks[Shard]
    trainer: TrainerGroup
    sender_options: Callable[[], dict[str, Any]]
    """Returns the Ray options of what works beside the first rank, such as the actor that sends weights."""
    trained_s: float = 0.0
    """Seconds in which the trainer's ranks had a job."""

    def busy(self) -> Busy:
        """How busy the actors have been so far."""
        return Busy(self.fleet.busy_s, self.trained_s)

    def idle_since(self, before: Busy, seconds: float) -> dict[str, float]:
        """Shares of the last `seconds` seconds in which `engines` had no task, over all engines, and the ranks of the `trainer` no job."""
        engines_s, trainer_s = self.fleet.busy_s - before.engines_s, self.trained_s - before.trainer_s
        busy = {"engines": engines_s / (self.fleet.size * seconds), "trainer": trainer_s / seconds}
        return {name: min(1.0, max(0.0, 1.0 - share)) for name, share in busy.items()}

    def serve(self, model: Model) -> None:
        """Serve `model`. Returns once one engine serves it; the others are swapped while that one works. Starts or wakes the engines if
        necessary, and does nothing if the model is already served."""
        if not self.fleet.weight_version:
            self._start(model)
            return
        if self.fleet.weight_version != model.version:
            self.fleet.roll(self._update(model))
        self.fleet.complete_roll(num_engines=1)

    def sleep(self) -> None:
        """Put the engines, if started, to sleep so that they free their memory; `serve` wakes them."""
        if self.fleet.weight_version:
            self.fleet.sleep()

    def launch_trainer(self) -> None:
        """Start the trainer ranks, if there is room for them now, so that they import while the engines work."""
        try:
            self.trainer.launch()
        except NotEnoughResourcesError as error:
            log.warning("trainer ranks do not start ahead: %s", error)

    def train(self, job: TrainingJob, stage: Stage) -> TrainingResult:
        """Run a job on the trainer's ranks and show its progress."""
        training, cluster = self.run.config.training, self.run.config.cluster
        bounds = Bounds(
            training.timeout_s, start_timeout_s=cluster.start_timeout_s, stall_timeout_s=training.stall_timeout_s,
            max_restarts=cluster.max_restarts,
        )  # fmt: skip
        started_s = time.monotonic()
        result = self.trainer.train(job, self.run.images, bounds, lambda progress: self.run.progress.trained(stage, progress))
        self.trained_s += time.monotonic() - started_s
        if result.resumed_from_step:
            self.run.progress.note(f"training resumed after step {result.resumed_from_step}")
        return result

    def average(self, older: Model, newer: Model, decay: float, output: Path | RemoteOutput) -> str:
        """Write the average of two models; see `actors.training.checkpoint.write_average`. Returns its digest. The task runs beside the
        first rank, whose machine has the newer one."""
        old, new = (self.run.store.checkpoint(model.path, self.run.kept_checkpoints) for model in (older, newer))
        options = {**self.sender_options(), "num_gpus": 0}
        return average(old, new, decay, output, timeout_s=self.run.config.training.stall_timeout_s, options=options)

    def take_incidents(self) -> list[Finding]:
        """How the fleet has shrunk and grown since the last call, for the commit of a round."""
        lines = self.fleet.take_incidents()
        message = "engines left the fleet, joined it, moved to another node or came back; run.log has a line for each"
        return [Finding(kind="fleet_changed", count=len(lines), message=message, example=lines[-1])] if lines else []

    def _start(self, model: Model) -> None:
        """Start the engines, which serve only after their first completed swap."""
        with self.run.progress.stage("start engines", total=self.fleet.size, unit="engines") as stage:
            self.fleet.start(self._update(model, first=True), stage.advance)

    def _update(self, model: Model, *, first: bool = False) -> WeightUpdate:
        config, checkpoint = self.run.config, self.run.store.checkpoint(model.path, self.run.kept_checkpoints)
        update = prepare(checkpoint, model.version, config.transport, self.sender_options(), digest=model.digest)
        engine = config.engine
        if engine.probed == "always" or (first and engine.probed == "first"):
            return replace(update, probe=probe_of(checkpoint, engine, config.cluster.start_timeout_s))
        return update


@contextmanager
def open_workers(run: Run) -> Iterator[Workers]:
    """Join or start Ray, reserve the planned resources, and create the actors, whose engines load the run's copy of the seed model; all of
    this ends with the block."""
    config, cluster = run.config, run.config.cluster
    with ExitStack() as stack:
        with run.progress.stage("reserve resources" if ray.is_initialized() else "connect to Ray"):
            info = stack.enter_context(connected_for(cluster, run.store.uri))
            check_nodes(image_paths(config.data_sets), run.store.storage, info.num_nodes, cluster.start_timeout_s)
            placement = stack.enter_context(_reserved(run, info))
        trainer = _trainer(config, placement)
        stack.callback(trainer.shutdown)
        stack.callback(trainer.cancel)
        fleet = _fleet(run, placement)
        stack.callback(fleet.shutdown, _SHUTDOWN_S)
        yield Workers(run, fleet, _filters(run, placement), trainer, placement.sender_options)


@contextmanager
def _reserved(run: Run, info: ClusterInfo) -> Iterator[Placement]:
    """Reserve the resources of a run, on a cluster those for which there is room. Nodes that join are used once they have been checked.

    Raises:
        NotEnoughResourcesError: there is too little room, also after the configured waits.
    """
    cluster, request = run.config.cluster, resource_request(run.config)
    engines = engine_range(cluster, is_local=info.is_local)
    if info.is_local or not cluster.node_wait_s:
        plan_resources(info.nodes, replace(request, num_engines=engines.least))
    plan = plan_resources([NodeResources("any", math.inf, math.inf)], request)
    timeout_s = max(cluster.start_timeout_s, cluster.node_wait_s)
    with reserve(plan, timeout_s, engines, is_alone=info.is_local, admits=_admission(run, info)) as placement:
        yield placement


def _admission(run: Run, info: ClusterInfo) -> Admits:
    """Admits the nodes that are there, and those that join once they pass the check of nodes; none join a local Ray."""
    if info.is_local:
        return lambda _: True
    check = partial(wrong_here, image_paths(run.config.data_sets), run.store.storage, versions())
    return NodeGate(check, [node.node_id for node in info.nodes]).admits


def engine_range(cluster: ClusterConfig, *, is_local: bool) -> EngineRange:
    """How many engines a run begins with, takes and asks for. On one machine, a fixed number has to be there from the start."""
    if cluster.num_engines != "auto":
        return EngineRange(cluster.num_engines if is_local else cluster.min_engines, cluster.num_engines, is_asked_for=not is_local)
    return EngineRange(cluster.min_engines, cluster.max_engines, is_asked_for=cluster.node_wait_s > 0 and not is_local)


def _trainer(config: RunConfig, placement: Placement) -> TrainerGroup:
    plan = placement.plan
    options = RankOptions(plan.trainer_cpus, plan.trainer_gpus, config.training.num_threads, placement)
    return TrainerGroup(TrainerRank, plan.trainer_ranks, options)


def _fleet(run: Run, placement: Placement) -> Fleet:
    spec = EngineSpec(run.config.engine.kind, run.store.checkpoint(checkpoint_path(checkpoint_name(0))), run.config.engine_options)
    tested = run.tested if run.config.decontamination.images else None
    return engine_fleet(spec, run.config.generation.options, run.policies.correction, run.config.cluster, placement, tested)


def _filters(run: Run, placement: Placement) -> StatelessTasks[Shard]:
    cluster, filters = run.config.cluster, decontaminated(run.policies.filters, run.config, run.tested)
    return StatelessTasks(
        filter_shard, (filters, run.policies.selection.score, run.policies.similarity, run.store.write_part),
        _MAX_UNFINISHED_PER_FILTER * cluster.num_filters, cluster.start_timeout_s + cluster.task_timeout_s,
        placement.filter_options, placement.check_filters, placement.is_filter_stranded,
    )  # fmt: skip
