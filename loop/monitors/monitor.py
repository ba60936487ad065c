"""Follow a run while it goes on: the interface of monitors, and how they are told what happens.

    RunProgress ── round started, stage progressed, steps trained ──┐
    driver ─────── round committed, run ended ──────────────────────┴─► Monitors ─► mlflow, jsonl, tensorboard, wandb, module:Name

A monitor is never worth a run: one that raises an error is left out from then on, with one warning.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from actors.training.job import TrainedStep
from loop.credentials import masked
from loop.errors import one_line
from loop.store.commits import RoundCommit

log = logging.getLogger(__name__)

Ending = Literal["FINISHED", "FAILED", "KILLED"]
"""How a driver has ended: the loop is over, an error, or an interruption."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a monitor is made with."""

    run_id: str
    name: str
    """The run's name in its config."""
    uri: str
    """The run folder, or its URI."""
    folder: Path
    """A local folder to write to: the run's own, or for a run behind a URI one in the working folder."""
    parameters: Mapping[str, str]
    """The config, as dotted keys and text values."""


@dataclass(frozen=True, slots=True)
class StageProgress:
    """A stage when it starts, advances or ends."""

    round: int | None
    """None before the first round."""
    name: str
    """`generate, correct, filter`, `train`, `evaluate` and so on."""
    done: int
    """Units that are done."""
    total: int | None
    unit: str
    """`shards`, `steps`, `questions` and so on."""
    totals: Mapping[str, int]
    """What else is counted, such as `records` and `kept`."""
    elapsed_s: float
    is_over: bool


class Monitor(Protocol):
    """Follows one driver of a run. Calls come from several threads, one at a time. They must return at once: the loop waits for them."""

    def round_started(self, round: int, num_rounds: int) -> None:
        """A round starts, or is continued by another driver; round 0 is the seed model's evaluation."""
        ...

    def stage_progressed(self, stage: StageProgress) -> None:
        """A stage starts, has advanced (at most every two seconds), or is over. With `overlap`, it may belong to the next round."""
        ...

    def steps_trained(self, stage: StageProgress, steps: Sequence[TrainedStep]) -> None:
        """The trainer has done these steps, in order. Those after the last step checkpoint come again after a restart."""
        ...

    def round_committed(self, commits: Sequence[RoundCommit]) -> None:
        """The last of these rounds, which are all of the run so far, is committed. Comes again when a run is resumed."""
        ...

    def run_ended(self, ending: Ending, patience_s: float) -> None:
        """The driver ends; a monitor may take `patience_s` seconds to complete what it has."""
        ...


class Monitors:
    """The monitors of a run, by name; itself a `Monitor`."""

    def __init__(self, monitors: Mapping[str, Monitor] | None = None) -> None:
        self._monitors = dict(monitors or {})
        self._lock = threading.RLock()

    def round_started(self, round: int, num_rounds: int) -> None:
        self._tell(lambda monitor: monitor.round_started(round, num_rounds))

    def stage_progressed(self, stage: StageProgress) -> None:
        self._tell(lambda monitor: monitor.stage_progressed(stage))

    def steps_trained(self, stage: StageProgress, steps: Sequence[TrainedStep]) -> None:
        self._tell(lambda monitor: monitor.steps_trained(stage, steps))

    def round_committed(self, commits: Sequence[RoundCommit]) -> None:
        self._tell(lambda monitor: monitor.round_committed(commits))

    def run_ended(self, ending: Ending, patience_s: float = 30.0) -> None:
        """Tell the monitors once; later calls do nothing."""
        with self._lock:
            self._tell(lambda monitor: monitor.run_ended(ending, patience_s))
            self._monitors.clear()

    def _tell(self, call: Callable[[Monitor], None]) -> None:
        with self._lock:
            for name, monitor in list(self._monitors.items()):
                try:
                    call(monitor)
                except Exception as error:
                    # The boundary of a monitor, which may be anybody's code: whatever it raises, the run continues without it.
                    del self._monitors[name]
                    reason = masked(f"{type(error).__name__}: {one_line(error)}")
                    log.warning("monitor %s is left out from now on: %s", name, reason, exc_info=not isinstance(error, OSError))
