"""The driver's side of the trainer: starts, supervises and restarts a group of rank actors.

    launch ──► Ray locates every rank ──► rank 0 holds a port ──► all import DeepSpeed and join    (the driver does not wait)
    train  ──► every rank trains its share; rank 0 writes the checkpoint and returns the result    (the driver polls the progress)

The ranks stay joined for any number of jobs of ZeRO stages 0 to 2. If a rank dies or stalls, the group kills the others too. The end
of a stage 3 job also ends its ranks. The next `train` starts new ones, which continue from the job's last step checkpoint.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.images import ImageSource
from actors.training.job import (
    Progress,
    RankLostError,
    RendezvousError,
    TrainerError,
    TrainingCancelledError,
    TrainingJob,
    TrainingResult,
)
from cluster.errors import FinalError, TimeoutExceededError
from cluster.processes import ActorProcess, await_exit
from cluster.resources.placement import RankPlace
from cluster.training.watch import WATCH_GROUP, ProgressWatch, StartWatch, Watch

log = logging.getLogger(__name__)

_POLL_S = 0.5
_SHUTDOWN_TIMEOUT_S = 20.0
_ANSWER_S = 10.0
"""For a rank that lives to say what it is doing."""
_MAX_START_TIMEOUTS = 4.0
"""A start that makes progress may take this many times `Bounds.start_timeout_s`."""


class RankWorker(Protocol):
    """Interface of a rank's actor, whose constructor takes its rank, the number of ranks and the number of threads. It serves one call
    at a time, in order, and `progress` and `start_phase` concurrently."""

    def rendezvous(self, *locations: tuple[str, int]) -> Any:
        """Rank 0 only: opens a port, given each rank's node id and process id; returns the argument of every rank's `prepare`."""
        ...

    def prepare(self, rendezvous: Any) -> None:
        """Does the heavy imports and joins the group."""
        ...

    def train(self, job: TrainingJob, source: ImageSource) -> TrainingResult | None:
        """Runs this rank's part of a job; rank 0 returns the result."""
        ...

    def progress(self) -> Progress | None:
        """Progress of the running job; called while `train` runs."""
        ...

    def start_phase(self) -> str:
        """What the rank is doing at start-up; called while `prepare` runs."""
        ...


class RankPlacement(Protocol):
    """Has room for the ranks, as `cluster.resources.placement.Placement`."""

    def place_ranks(self, timeout_s: float) -> Sequence[RankPlace]:
        """A place for each rank; waits until there is room for all.

        Raises:
            NotEnoughResourcesError: there is none within `timeout_s` seconds.
        """
        ...

    def is_lost(self, place: RankPlace) -> bool:
        """Whether the node of a place is lost."""
        ...


@dataclass(frozen=True, slots=True)
class RankOptions:
    """Resources of each rank."""

    num_cpus: float = 1.0
    """CPUs that Ray reserves; torch uses `threads`."""
    num_gpus: float = 0.0
    threads: int = 1
    placement: RankPlacement | None = None
    """Where the ranks run; `None`: anywhere."""
    env_vars: Mapping[str, str] = field(default_factory=dict)
    """Extra environment variables of the ranks."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on the time and the restarts of a job."""

    timeout_s: float
    """For the whole job, including restarts."""
    start_timeout_s: float = math.inf
    """For new ranks to import and join. Restarts with every step of a start that a rank completes, because on a busy machine a start is
    slow without hanging. The whole start may take four times as long."""
    stall_timeout_s: float = math.inf
    """From one step to the next; also for loading the model before the first step, and for writing the checkpoint after the last."""
    max_restarts: int = 0
    """How often lost ranks are replaced. Ranks that are lost with their node do not count: the number of nodes bounds that."""


class TrainerGroup:
    """The driver's handle on the ranks. A plain class; not for concurrent use, except for `cancel`."""

    def __init__(self, worker: type[RankWorker], num_ranks: int, options: RankOptions) -> None:
        """Starts nothing; see `launch`, `start` and `train`.

        Args:
            worker: the class of the ranks' actors.
            num_ranks: number of ranks.
            options: resources of each rank.

        Raises:
            ValueError: `num_ranks` is below one.
        """
        if num_ranks < 1:
            raise ValueError(f"a trainer group needs at least one rank, not {num_ranks}")
        self._worker = worker
        self._num_ranks = num_ranks
        self._options = options
        self._places: Sequence[RankPlace] = ()
        self._processes: list[ActorProcess] = []
        self._joining: list[ray.ObjectRef] = []
        self._cancelled = threading.Event()
        self.pids: tuple[int, ...] = ()
        """Process id of each rank on its node, once all have joined."""

    def launch(self, room_timeout_s: float = 0.0) -> None:
        """Start the ranks without waiting for them, so that they import and join while the driver does something else.

        Args:
            room_timeout_s: longest wait for room for all ranks.

        Raises:
            NotEnoughResourcesError: there is none in that time.
            TrainingCancelledError: see `cancel`.
        """
        if self._processes:
            return
        placement = self._options.placement
        self._places = [] if placement is None else placement.place_ranks(room_timeout_s)
        self._refuse_cancelled()
        self._processes = [ActorProcess(self._create(rank)) for rank in range(self._num_ranks)]
        ranks = self._ranks
        rendezvous = ranks[0].rendezvous.remote(*(process.location for process in self._processes))
        self._joining = [rank.prepare.remote(rendezvous) for rank in ranks]

    def start(self, timeout_s: float, total_timeout_s: float = math.inf) -> None:
        """Launch the ranks if necessary, and wait until all have joined.

        Args:
            timeout_s: longest time without progress of any rank, and longest wait for room for all.
            total_timeout_s: longest time of the whole start; never more than four times `timeout_s`.

        Raises:
            RankLostError: a rank died, or the ranks did not start in time although there was room for them. All are killed.
            NotEnoughResourcesError: there was no room for them in time.
            TrainerError: the ranks cannot start, and a retry would not help.
        """
        self.launch(min(timeout_s, total_timeout_s))
        if self.pids:
            return
        total_timeout_s = min(total_timeout_s, _MAX_START_TIMEOUTS * timeout_s)
        self._await(self._joining, "start", total_timeout_s, StartWatch(self._ranks, timeout_s), on_timeout=RankLostError)
        self.pids = tuple(self._locate(process) for process in self._processes)

    def train(
        self, job: TrainingJob, source: ImageSource, bounds: Bounds, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> TrainingResult:
        """Run a job, starting the ranks if necessary. If its output already exists, it is verified and its result returned.

        If a rank dies or hangs, during start or training, all ranks are replaced and continue from the last step checkpoint.

        Args:
            job: its paths must mean the same on every rank's node as here.
            source: provides the samples' images.
            bounds: limits on waits and restarts.
            on_progress: called in this process about twice a second if there is progress.

        Raises:
            RankLostError: ranks were lost more often than `bounds` allow.
            NotEnoughResourcesError: a node is lost, and for too long no other had room for its ranks.
            TrainingCancelledError: see `cancel`.
            TrainerError: the job itself failed or timed out. All ranks are killed; another call starts new ones.
            FinalError: a rank raised it, such as for a store that it cannot write.
        """
        deadline = time.monotonic() + bounds.timeout_s
        num_restarts = 0
        while True:
            try:
                self.start(bounds.start_timeout_s, deadline - time.monotonic())
                return self._train(job, source, deadline, bounds.stall_timeout_s, on_progress)
            except RankLostError as error:
                is_node_lost = self._is_node_lost()
                if (num_restarts == bounds.max_restarts and not is_node_lost) or time.monotonic() > deadline:
                    raise
                if is_node_lost:
                    log.warning("%s; a node of the ranks is lost, they start again where there is room", error)
                else:
                    num_restarts += 1
                    log.warning("%s; restart %d of %d", error, num_restarts, bounds.max_restarts)

    def cancel(self) -> None:
        """End for good: a job that runs in another thread is ended within seconds, or once its ranks have room, and no later one begins."""
        self._cancelled.set()

    def shutdown(self) -> None:
        """Kill the ranks. Waits, for a bounded time, until Ray knows that they are dead and their processes on this machine have
        exited, which frees its devices."""
        ranks, processes = self._ranks, self._processes
        self._processes, self._joining, self.pids = [], [], ()
        killed = [process for rank in processes if (process := rank.kill()) is not None]
        if ranks:  # calls to a dead actor fail at once
            ray.wait([rank.progress.remote() for rank in ranks], num_returns=len(ranks), timeout=_SHUTDOWN_TIMEOUT_S)
        try:
            await_exit(killed, _SHUTDOWN_TIMEOUT_S, "trainer")
        except TimeoutExceededError as error:
            log.warning("%s", error)

    def _refuse_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise TrainingCancelledError("the training was cancelled")

    @property
    def _ranks(self) -> list[Any]:
        return [process.handle for process in self._processes]

    def _locate(self, process: ActorProcess) -> int:
        node_id, pid = ray.get(process.location, timeout=_SHUTDOWN_TIMEOUT_S)
        process.locate(node_id, pid)
        return pid

    def _train(
        self, job: TrainingJob, source: ImageSource, deadline: float, stall_timeout_s: float, on_progress: Callable[[Progress], None]
    ) -> TrainingResult:
        self._refuse_cancelled()
        job_ref, source_ref = ray.put(job), ray.put(source)
        ranks = self._ranks
        running = [rank.train.remote(job_ref, source_ref) for rank in ranks]
        results = self._await(running, "train", deadline - time.monotonic(), ProgressWatch(ranks[0], on_progress, stall_timeout_s))
        result = results[0]
        assert isinstance(result, TrainingResult), "rank 0 has the result"
        on_progress(Progress(result.num_steps, result.num_steps, result.final_loss, steps=result.steps))
        if job.hyper.zero_stage == 3:
            # DeepSpeed 0.19 keeps a stage 3 model alive after its engine is destroyed; only the end of the process frees it
            self.shutdown()
        return replace(result, steps=())

    def _is_node_lost(self) -> bool:
        """Whether the ranks that were started last are lost because a node of theirs is."""
        placement = self._options.placement
        return placement is not None and any(map(placement.is_lost, self._places))

    def _create(self, rank: int) -> ActorHandle:
        options = self._options
        environment = {
            **options.env_vars,
            "OMP_NUM_THREADS": str(options.threads),
            "DS_ACCELERATOR": "cuda" if options.num_gpus else "cpu",
        }
        as_actor: Any = ray.remote  # its types omit concurrency groups
        return as_actor(concurrency_groups={WATCH_GROUP: 1})(self._worker).options(
            num_cpus=options.num_cpus, num_gpus=options.num_gpus, max_restarts=0, max_task_retries=0,
            scheduling_strategy=self._places[rank].strategy if self._places else None, runtime_env={"env_vars": environment},
        ).remote(rank, self._num_ranks, options.threads)  # fmt: skip

    def _await(
        self, refs: list[ray.ObjectRef], verb: str, timeout_s: float, watch: Watch, on_timeout: type[TrainerError] = TrainerError
    ) -> list[Any]:
        """The ranks' results, in order. On failure all ranks are killed, because the others would wait for the failed one.
        Raises `on_timeout` after `timeout_s` seconds."""
        try:
            self._wait(refs, verb, timeout_s, watch, on_timeout)
            return ray.get(refs, timeout=_SHUTDOWN_TIMEOUT_S)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, FinalError):
                self.shutdown()
                raise error.cause from error
            kind = TrainerError if self._would_fail_again(error) else RankLostError
            self.shutdown()
            raise kind(f"the trainer could not {verb}: {_describe(error)}") from error
        except BaseException:
            self.shutdown()
            raise

    def _wait(self, refs: list[ray.ObjectRef], verb: str, timeout_s: float, watch: Watch, on_timeout: type[TrainerError]) -> None:
        deadline = time.monotonic() + timeout_s
        pending = refs
        while pending:
            self._refuse_cancelled()
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise on_timeout(f"the trainer did not {verb} within {timeout_s:.0f} s; {len(pending)} of {len(refs)} ranks are not done")
            done, pending = ray.wait(pending, num_returns=1, timeout=min(_POLL_S, remaining_s))
            ray.get(done, timeout=_SHUTDOWN_TIMEOUT_S)  # raises a rank's error even while the others still wait for it
            watch.poll()

    def _would_fail_again(self, error: RayError) -> bool:
        """Whether a restart would not help: the job itself is at fault, or the network between ranks that all live. All other errors are
        the machine's fault."""
        if not isinstance(error, RayTaskError):
            return False
        if isinstance(error.cause, RendezvousError):
            return self._all_answer()
        return isinstance(error.cause, ValueError | TrainerError)

    def _all_answer(self) -> bool:
        """Whether all ranks live: one that cannot be reached by the others may just have died."""
        answers = [rank.start_phase.options(concurrency_group=WATCH_GROUP).remote() for rank in self._ranks]
        answered, silent = ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_S)
        try:
            ray.get(answered, timeout=_ANSWER_S)
        except RayError:
            return False
        return not silent


def _describe(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return str(error).strip()
