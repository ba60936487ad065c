"""The trainer as Ray actors: one actor per rank, and the group of them as the driver sees it.

    launch ──► every rank tells its node ──► rank 0 holds a port ──► all import DeepSpeed and join    (no wait in the driver)
    train  ──► every rank trains its share; rank 0 writes the checkpoint and returns the result       (progress is polled)

The ranks stay joined over any number of jobs of ZeRO stages 0 to 2. A rank that dies or stalls takes the group with it, and so does
the end of a stage 3 job; the next `train` starts a new one, which goes on from the job's last step checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.images import ImageSource
from actors.spared import spare_sklearn
from actors.training.job import Progress, RankLostError, TrainerError, TrainingJob, TrainingResult

log = logging.getLogger(__name__)

_POLL_S = 0.5
_SHUTDOWN_TIMEOUT_S = 20.0
_JOIN_TIMEOUT_S = 300.0
_MAX_START_TIMEOUTS = 4.0
"""A start that makes progress may take so many times `Bounds.start_timeout_s`."""


@dataclass(frozen=True, slots=True)
class RankOptions:
    """What each rank gets."""

    num_cpus: float = 1.0
    """What Ray counts; torch uses `threads`."""
    num_gpus: float = 0.0
    threads: int = 1
    placement_group: PlacementGroup | None = None
    """Where the ranks go; `None`: wherever Ray has room."""
    bundles: Sequence[int] = ()
    """Bundle of each rank in `placement_group`; empty: rank i takes bundle i."""
    env_vars: Mapping[str, str] = field(default_factory=dict)
    """Further environment of the ranks' processes."""


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a group meets."""

    host: str
    port: int
    node_ids: tuple[str, ...]
    """Node of each rank."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a job may take, and how often its ranks may be lost."""

    timeout_s: float
    """For all of it, restarts included."""
    start_timeout_s: float = math.inf
    """For new ranks to import and join, counted anew from every step of a start that one of them completes: on a busy machine a start is
    slow, and that is not a hang. All of it takes four times as long at most."""
    stall_timeout_s: float = math.inf
    """From one step to the next; also for loading the model before the first step, and for writing the checkpoint after the last."""
    max_restarts: int = 0
    """Times that lost ranks are replaced by new ones."""


class TrainerRank:
    """One rank, a thin shell around `actors.training.core.Trainer`. Every method may be called again with the same result."""

    def __init__(self, rank: int, world_size: int, threads: int) -> None:
        self._rank = rank
        self._world_size = world_size
        self._threads = threads
        self._listener: socket.socket | None = None
        self._rendezvous: Rendezvous | None = None
        self._progress: Progress | None = None
        self._start_phase = "importing PyTorch"

    def node_id(self) -> str:
        """The Ray node that this rank is on."""
        return ray.get_runtime_context().get_node_id()

    def rendezvous(self, *node_ids: str) -> Rendezvous:
        """Rank 0 only: hold a port for the group, on the loopback interface if all ranks are on one node."""
        from actors.training.distributed import LOOPBACK, reserve_port

        if self._rendezvous is None:
            host = LOOPBACK if len(set(node_ids)) == 1 else ray.util.get_node_ip_address()
            self._listener = reserve_port(host)
            self._rendezvous = Rendezvous(host, int(self._listener.getsockname()[1]), node_ids)
        return self._rendezvous

    def prepare(self, rendezvous: Rendezvous) -> int:
        """Do the heavy imports and join the group; returns this process's id."""
        import torch

        from actors.training.distributed import join_process_group, prepare_deepspeed

        self._start_phase = "importing DeepSpeed"
        spare_sklearn()
        torch.set_num_threads(self._threads)
        os.environ.update(self._environment(rendezvous))
        prepare_deepspeed()
        self._start_phase = "joining the others"
        join_process_group(self._rank, self._world_size, rendezvous.host, rendezvous.port, self._listener, _JOIN_TIMEOUT_S)
        return os.getpid()

    def train(self, job: TrainingJob, source: ImageSource) -> TrainingResult | None:
        """Run this rank's part of a job; see `Trainer.run`. Engines may need its memory afterwards: none is kept, but at ZeRO stage 3,
        where only the end of the process frees it."""
        from actors.memory import give_back_memory
        from actors.training.core import Trainer

        trainer = Trainer(job, source, rank=self._rank, world_size=self._world_size, on_progress=self._note)
        try:
            return trainer.run()
        finally:
            self._progress = None  # the next job's watch may ask before that job has begun
            give_back_memory()

    @ray.method(concurrency_group="watch")
    def progress(self) -> Progress | None:
        """How far the running job is; answered while `train` runs."""
        return self._progress

    @ray.method(concurrency_group="watch")
    def start_phase(self) -> str:
        """What the rank is at while it starts; answered while `prepare` runs. Changes with every module that is imported."""
        return f"{self._start_phase} ({len(sys.modules)} modules)"

    def _note(self, progress: Progress) -> None:
        self._progress = progress

    def _environment(self, rendezvous: Rendezvous) -> dict[str, str]:
        here = rendezvous.node_ids[self._rank]
        # Ray shows a process only the GPUs that are its own: the first of them is the one
        local_rank = 0 if os.environ["DS_ACCELERATOR"] == "cuda" else rendezvous.node_ids[: self._rank].count(here)
        return {
            "RANK": str(self._rank),
            "WORLD_SIZE": str(self._world_size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(rendezvous.node_ids.count(here)),
            "MASTER_ADDR": rendezvous.host,
            "MASTER_PORT": str(rendezvous.port),
        }


class TrainerGroup:
    """The driver's handle on the ranks. A plain class; not for concurrent use."""

    def __init__(self, num_ranks: int, options: RankOptions, check_placement: Callable[[], None] = lambda: None) -> None:
        """Note what to start; nothing runs before `launch`, `start` or `train`.

        Args:
            num_ranks: how many.
            options: what each gets.
            check_placement: asked when ranks do not start; raises what is to be done about it, where there is no place for them.

        Raises:
            ValueError: fewer than one rank, or as many bundles as ranks were expected and others given.
        """
        if num_ranks < 1:
            raise ValueError(f"a trainer group needs at least one rank, not {num_ranks}")
        if options.bundles and len(options.bundles) != num_ranks:
            raise ValueError(f"{len(options.bundles)} bundles were given for {num_ranks} ranks; give one per rank, or none")
        self._num_ranks = num_ranks
        self._options = options
        self._check_placement = check_placement
        self._ranks: list[Any] = []
        self._joining: list[Any] = []
        self._nodes: list[Any] = []
        self._processes: list[psutil.Process] = []
        self.pids: tuple[int, ...] = ()
        """Process of each rank on its node, once started."""

    def launch(self) -> None:
        """Begin to start the ranks without waiting, so that they import and join while the driver does something else."""
        if self._ranks:
            return
        self._ranks = [self._create(rank) for rank in range(self._num_ranks)]
        self._nodes = [rank.node_id.remote() for rank in self._ranks]
        rendezvous = self._ranks[0].rendezvous.remote(*self._nodes)
        self._joining = [rank.prepare.remote(rendezvous) for rank in self._ranks]

    def start(self, timeout_s: float, total_timeout_s: float = math.inf) -> None:
        """Launch the ranks unless they are, and wait until all have joined.

        Args:
            timeout_s: longest time in which no rank gets on.
            total_timeout_s: longest time of all; at most four times `timeout_s` in any case.

        Raises:
            RankLostError: one died, or they did not start in time, and there is a place for them; none is left.
            TrainerError: they cannot start, and would not the next time.
        """
        self.launch()
        if self.pids:
            return
        total_timeout_s = min(total_timeout_s, _MAX_START_TIMEOUTS * timeout_s)
        try:
            watch = _StartWatch(self._ranks, timeout_s)
            self.pids = tuple(self._await(self._joining, "start", total_timeout_s, watch, late=RankLostError))
            self._processes = _processes_here(self.pids, ray.get(self._nodes, timeout=_SHUTDOWN_TIMEOUT_S))
        except TrainerError:
            self._check_placement()
            raise

    def train(
        self, job: TrainingJob, source: ImageSource, bounds: Bounds, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> TrainingResult:
        """Run a job, starting the ranks if need be. A job whose output is there already is verified and returned.

        When a rank dies or hangs, while it starts or works, all of them are replaced and go on from the last step checkpoint.

        Args:
            job: its paths must mean the same on rank 0's node as here.
            source: where the samples' images come from.
            bounds: of waits and restarts.
            on_progress: called here about twice a second while there is news.

        Raises:
            RankLostError: ranks were lost once more than `bounds` allow.
            TrainerError: the job itself failed, or the time is up. All ranks are gone then; another call starts new ones.
        """
        deadline = time.monotonic() + bounds.timeout_s
        for num_restarts in range(bounds.max_restarts + 1):
            try:
                self.start(bounds.start_timeout_s, deadline - time.monotonic())
                return self._train(job, source, deadline, bounds.stall_timeout_s, on_progress)
            except RankLostError as error:
                if num_restarts == bounds.max_restarts or time.monotonic() > deadline:
                    raise
                log.warning("%s; restart %d of %d", error, num_restarts + 1, bounds.max_restarts)
        raise AssertionError("max_restarts is not negative")

    def _train(
        self, job: TrainingJob, source: ImageSource, deadline: float, stall_timeout_s: float, on_progress: Callable[[Progress], None]
    ) -> TrainingResult:
        job_ref, source_ref = ray.put(job), ray.put(source)
        running = [rank.train.remote(job_ref, source_ref) for rank in self._ranks]
        watch = _Watch(self._ranks[0], on_progress, stall_timeout_s)
        results = self._await(running, "train", deadline - time.monotonic(), watch)
        result = results[0]
        assert isinstance(result, TrainingResult), "rank 0 has the result"
        on_progress(Progress(result.num_steps, result.num_steps, result.final_loss))
        if job.hyper.zero_stage == 3:
            # DeepSpeed 0.19 keeps a stage 3 model alive after its engine is destroyed; only the end of the process frees it
            self.shutdown()
        return result

    def shutdown(self) -> None:
        """Kill the ranks and wait, for a bounded time, until Ray knows them dead and those of this machine are gone, with what they
        held on its devices."""
        ranks, self._ranks, self._joining, self._nodes, self.pids = self._ranks, [], [], [], ()
        processes, self._processes = self._processes, []
        for rank in ranks:
            ray.kill(rank)
        if ranks:
            ray.wait([rank.node_id.remote() for rank in ranks], num_returns=len(ranks), timeout=_SHUTDOWN_TIMEOUT_S)
        _, alive = psutil.wait_procs(processes, timeout=_SHUTDOWN_TIMEOUT_S)
        if alive:
            log.warning("trainer processes %s are still there after %g s", [one.pid for one in alive], _SHUTDOWN_TIMEOUT_S)

    def _create(self, rank: int) -> Any:
        options, strategy = self._options, None
        if options.placement_group is not None:
            bundle = options.bundles[rank] if options.bundles else rank
            strategy = PlacementGroupSchedulingStrategy(options.placement_group, placement_group_bundle_index=bundle)
        environment = {
            **options.env_vars,
            "OMP_NUM_THREADS": str(options.threads),
            "DS_ACCELERATOR": "cuda" if options.num_gpus else "cpu",
        }
        as_actor: Any = ray.remote  # whose types leave concurrency groups out
        return as_actor(concurrency_groups={"watch": 1})(TrainerRank).options(
            num_cpus=options.num_cpus, num_gpus=options.num_gpus, max_restarts=0, max_task_retries=0,
            scheduling_strategy=strategy, runtime_env={"env_vars": environment},
        ).remote(rank, self._num_ranks, options.threads)  # fmt: skip

    def _await(
        self, refs: list[Any], verb: str, timeout_s: float, watch: _Watch | _StartWatch, late: type[TrainerError] = TrainerError
    ) -> list[Any]:
        """What the ranks return, in order. However this ends otherwise, no rank is left: the others would wait for it. Ranks that take
        longer than `timeout_s` are an error of the kind `late`."""
        try:
            self._wait(refs, verb, timeout_s, watch, late)
            return ray.get(refs, timeout=_SHUTDOWN_TIMEOUT_S)
        except RayError as error:
            self.shutdown()
            kind = TrainerError if _is_of_the_job(error) else RankLostError
            raise kind(f"the trainer could not {verb}: {_said(error)}") from error
        except BaseException:
            self.shutdown()
            raise

    def _wait(self, refs: list[Any], verb: str, timeout_s: float, watch: _Watch | _StartWatch, late: type[TrainerError]) -> None:
        deadline = time.monotonic() + timeout_s
        pending = refs
        while pending:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise late(f"the trainer did not {verb} within {timeout_s:.0f} s; {len(pending)} of {len(refs)} ranks are not done")
            done, pending = ray.wait(pending, num_returns=1, timeout=min(_POLL_S, remaining))
            ray.get(done, timeout=_SHUTDOWN_TIMEOUT_S)  # raises what a rank raised, while the others may still wait for it
            watch.look()


class _StartWatch:
    """Polls what ranks are at while they start, without ever waiting for them."""

    def __init__(self, ranks: Sequence[Any], timeout_s: float) -> None:
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._asked = [rank.start_phase.remote() for rank in ranks]
        self._phases = ["starting its process"] * len(ranks)
        self._last_at = time.monotonic()

    def look(self) -> None:
        """Note who got on.

        Raises:
            RankLostError: nobody did for too long.
        """
        for number, (rank, asked) in enumerate(zip(self._ranks, self._asked, strict=True)):
            answered, _ = ray.wait([asked], timeout=0)
            if not answered:
                continue
            phase = str(ray.get(asked, timeout=_SHUTDOWN_TIMEOUT_S))
            self._asked[number] = rank.start_phase.remote()
            if phase != self._phases[number]:
                self._phases[number], self._last_at = phase, time.monotonic()
        if time.monotonic() - self._last_at > self._timeout_s:
            phases = ", ".join(f"rank {number} {phase}" for number, phase in enumerate(self._phases))
            raise RankLostError(f"the trainer did not start within {self._timeout_s:g} s of its last progress: {phases}")


class _Watch:
    """Polls a rank's progress without ever waiting for it."""

    def __init__(self, rank: Any, on_progress: Callable[[Progress], None], stall_timeout_s: float) -> None:
        self._rank = rank
        self._on_progress = on_progress
        self._stall_timeout_s = stall_timeout_s
        self._asked = rank.progress.remote()
        self._last: Progress | None = None
        self._last_at = time.monotonic()

    def look(self) -> None:
        """Tell of news, if there is any.

        Raises:
            RankLostError: there has been none for too long.
        """
        progress = self._answer()
        if progress is not None and progress != self._last:
            self._last, self._last_at = progress, time.monotonic()
            self._on_progress(progress)
        elif time.monotonic() - self._last_at > self._stall_timeout_s:
            step = 0 if self._last is None else self._last.step
            raise RankLostError(f"the trainer has made no progress for {self._stall_timeout_s:g} s after step {step}")

    def _answer(self) -> Progress | None:
        answered, _ = ray.wait([self._asked], timeout=0)
        if not answered:
            return None
        progress: Any = ray.get(self._asked, timeout=_SHUTDOWN_TIMEOUT_S)
        self._asked = self._rank.progress.remote()
        return progress


def _processes_here(pids: Sequence[int], node_ids: Sequence[str]) -> list[psutil.Process]:
    """The processes of the ranks on this machine."""
    here, found = ray.get_runtime_context().get_node_id(), []
    for pid, node_id in zip(pids, node_ids, strict=True):
        if node_id == here:
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
    return found


def _is_of_the_job(error: RayError) -> bool:
    """Whether a job failed by what it is: it would fail again. All else is the machine's fault."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, ValueError | TrainerError)


def _said(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return str(error).strip()
