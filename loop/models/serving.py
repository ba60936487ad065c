"""Start engines that serve one model: the fleet of a run, or one for a model without a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.engines import EngineSpec
from actors.engines.base import Probe, WeightUpdate
from actors.engines.errors import UnfitModelError
from actors.engines.probe import make_probe
from actors.folders import Folder
from actors.generator import GeneratorOptions
from actors.worker import EngineWorker
from cluster.fleet.fleet import Fleet
from cluster.fleet.restarts import Rooms
from cluster.fleet.slot import engine_actor
from cluster.resources.connect import connected
from cluster.resources.placement import Placement, reserve
from cluster.resources.plan import plan_engines
from loop.config.engine_config import ClusterConfig, EngineConfig
from policies.correction.methods import CorrectionPolicy, NoCorrection
from policies.decontamination.held_out import HeldOutImages

_SHUTDOWN_S = 30.0


def engine_fleet(
    spec: EngineSpec, generation: GeneratorOptions, correction: CorrectionPolicy, cluster: ClusterConfig, placement: Placement,
    tested: HeldOutImages | None = None,
) -> Fleet:  # fmt: skip
    """The engines of a plan, not started yet. They generate no record about images in `tested`, which every node receives once."""
    worker = engine_actor(EngineWorker)
    shared = None if tested is None else ray.put(tested)

    def spawn(index: int) -> Any:
        return worker.options(**placement.engine_options(index)).remote(spec, generation, correction, shared)

    return Fleet(
        spawn, placement.num_engines, task_timeout_s=cluster.task_timeout_s, start_timeout_s=cluster.start_timeout_s,
        swap_timeout_s=cluster.swap_timeout_s, max_restarts_per_engine=cluster.max_restarts, max_restarts=cluster.max_fleet_restarts,
        rooms=Rooms(placement.engine_home, placement.check_engines, cluster.min_engines, cluster.start_timeout_s, placement.find_places),
    )  # fmt: skip


def probe_of(checkpoint: Folder, engine: EngineConfig, timeout_s: float) -> Probe:
    """The output of the checkpoint's weights on a probe, computed in a separate process on any node.

    Raises:
        UnfitModelError: the model cannot be run by its own class.
    """
    task = ray.remote(num_cpus=0, max_retries=1)(make_probe).remote(checkpoint, engine.dtype, engine.num_threads)
    try:
        return ray.get(task, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, UnfitModelError):
            raise UnfitModelError(str(error.cause)) from error
        raise


@contextmanager
def serving(update: WeightUpdate, engine: EngineConfig, cluster: ClusterConfig, owner: str) -> Iterator[Fleet]:
    """Engines that serve a checkpoint, without trainer or filters; they end with the block.

    Args:
        update: the weights, as a Hugging Face folder.
        engine: how each engine runs it.
        cluster: how many engines, where, and time limits; its keys for trainers and filters are ignored.
        owner: the owner of the temp folder of a local Ray.

    Raises:
        NotEnoughResourcesError: the machine or cluster has no room.
        FleetError: an engine could not be started.
    """
    checkpoint = update.checkpoint
    assert checkpoint is not None, "engines load their model from a folder"
    with ExitStack() as stack:
        info = stack.enter_context(
            connected(
                cluster.address, num_cpus=cluster.num_cpus, temp_dir=None, timeout_s=cluster.start_timeout_s,
                dashboard=cluster.dashboard, owner=owner,
            )
        )  # fmt: skip
        plan = plan_engines(
            info.nodes, cluster.planned_engines, cluster.cpus_per_actor, engine.tensor_parallel_size if cluster.use_gpus else 0
        )
        placement = stack.enter_context(reserve(plan, cluster.start_timeout_s, is_alone=info.is_local))
        spec = EngineSpec(engine.kind, checkpoint, engine.options)
        fleet = engine_fleet(spec, GeneratorOptions(), NoCorrection(), cluster, placement)
        stack.callback(fleet.shutdown, _SHUTDOWN_S)
        probe = None if engine.probed == "never" else probe_of(checkpoint, engine, cluster.start_timeout_s)
        fleet.start(replace(update, probe=probe))
        yield fleet
