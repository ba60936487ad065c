"""Show the progress of the driver: a live line per stage on a terminal, plain lines in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from actors.training.job import Progress as TrainingProgress
from loop.errors import printable
from loop.monitors.monitor import Monitors, StageProgress
from loop.monitors.terminal import encodes_unicode

DEFAULT_LINE_EVERY_S = 5.0
MONITOR_EVERY_S = 2.0
"""Time between reports on a stage to monitors."""
QUIET_S = 15.0
"""A stage without news for this long is reported as at work."""
BAR_WIDTH = 12
RATE_OF = "records"  # the total whose rate is shown; a stage without it shows the rate of its units


class Stage:
    """One stage of a round, counted as it advances. Made by `RunProgress.stage`; safe to advance from one thread at a time."""

    def __init__(
        self, round: str, number: int | None, name: str, total: int | None, unit: str, clock: Callable[[], float],
        on_change: Callable[[Stage], None],
    ) -> None:  # fmt: skip
        self.round = round
        """`round 2/5`; empty before the first."""
        self.number = number
        """Of the round; None before the first."""
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.totals: dict[str, int] = {}
        self.remark = ""
        self._clock = clock
        self._started_s = clock()
        self.last_line_s = clock()
        """When it last had a line."""
        self.last_report_s = float("-inf")
        """When monitors last heard of it."""
        self.num_steps_reported = 0
        """Training steps that monitors have heard of."""
        self._pace_from: tuple[int, float] | None = None
        self._advanced_s = clock()
        self._on_change = on_change

    def advance(self, count: int = 1, **totals: int) -> None:
        """`count` more units are done; each of `totals` (`records`, `kept` and the like) grows by its value."""
        self.done += count
        self._advanced_s = self._clock()
        if self._pace_from is None and self.done:  # what comes first may have been done before, by an earlier driver
            self._pace_from = self.done, self._advanced_s
        for name, number in totals.items():
            self.totals[name] = self.totals.get(name, 0) + number
        self._on_change(self)

    def reach(self, done: int, remark: str = "") -> None:
        """`done` units are done in total; `remark` is shown until the next call."""
        self.remark = printable(remark)
        self.advance(done - self.done)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started_s

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the stage is over, at its mean pace so far; None if there is none yet."""
        if self.total is None or self._pace_from is None or self.done <= self._pace_from[0]:
            return None
        first, since_s = self._pace_from
        finish_s = since_s + (self._advanced_s - since_s) * (self.total - first) / (self.done - first)
        return max(0.0, finish_s - self._clock())

    def progress(self, *, is_over: bool = False) -> StageProgress:
        """The stage as monitors see it."""
        return StageProgress(self.number, self.name, self.done, self.total, self.unit, dict(self.totals), self.elapsed_s, is_over)

    def counted(self) -> str:
        """Progress: `12/64 shards`."""
        of_total = "" if self.total is None else f"/{self.total}"
        return f"{self.done}{of_total} {self.unit}"

    def details(self) -> str:
        """Totals and their rate: `records 480, kept 102, 31.2 records/s`."""
        parts = [f"{name} {number}" for name, number in self.totals.items()]
        elapsed_s = self.elapsed_s
        name, number = (RATE_OF, self.totals[RATE_OF]) if RATE_OF in self.totals else (self.unit, self.done)
        if number and elapsed_s > 0:
            parts.append(f"{number / elapsed_s:.1f} {name}/s")
        if self.remark:
            parts.append(self.remark)
        return ", ".join(parts)


class Listener(Protocol):
    """Receives the same lines and stages: the log of a run."""

    def line(self, text: str) -> None:
        """One line of the log."""
        ...

    def stages(self, stages: Sequence[Stage]) -> None:
        """The current stages, the newest last, when one starts or advances; none when all are done. A failed one is not reported again."""
        ...


def loss_remark(loss: float | None) -> str:
    """The loss as a training stage shows it."""
    return "" if loss is None else f"loss {loss:.3f}"


def time_left(seconds: float | None) -> str:
    """An estimate as the live views show it: `about 2:05 left`; empty without one."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"about {hours}:{minutes:02}:{rest:02} left" if hours else f"about {minutes}:{rest:02} left"


class RunProgress:
    """Shows rounds and stages on `console`: live when it is a terminal, otherwise as lines. A listener gets the lines in either case.
    Thread-safe: several stages may go on at the same time, each advanced by its own thread.

    A stage has one line at its start, at most one every `line_every_s` seconds on its progress, and one at its end with totals and
    seconds. A stage that does not advance has one every `QUIET_S`. On a terminal a live progress bar replaces all but the last.

        with RunProgress(console) as progress:
            progress.round(1, 5)
            with progress.stage("generate", total=64, unit="shards") as stage:
                stage.advance(1, records=48, kept=11)
    """

    def __init__(
        self,
        console: Console,
        line_every_s: float = DEFAULT_LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        listener: Listener | None = None,
        quiet_s: float = QUIET_S,
        monitors: Monitors | None = None,
    ) -> None:
        self._console = console
        self._listener = listener
        self._monitors = monitors or Monitors()
        self._quiet_s = quiet_s
        self._over = threading.Event()
        self._told_s = time.monotonic()
        self._stages: list[Stage] = []
        self._line_every_s = line_every_s
        self._clock = clock
        self._round, self._number, self._num_rounds = "", None, 0
        self._lock = threading.RLock()
        self._live = _live_display(console) if console.is_terminal and not console.is_dumb_terminal else None
        self._tasks: dict[Stage, TaskID] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        threading.Thread(target=self._break_silence, name="progress", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._live is not None:
            self._live.stop()

    def round(self, number: int, total: int, label: str = "") -> None:
        """The following stages belong to round `number` of `total`, shown as `label`; default `round NUMBER/TOTAL`."""
        self._round, self._number, self._num_rounds = label or f"round {number}/{total}", number, total
        self._line(self._round, "bold")
        self._monitors.round_started(number, total)

    def note(self, text: str) -> None:
        """Print one line of text."""
        self._line(printable(text))

    def trained(self, stage: Stage, progress: TrainingProgress) -> None:
        """What the trainer reports of its job during `stage`."""
        stage.reach(progress.step, loss_remark(progress.loss))
        steps = [step for step in progress.steps if step.step > stage.num_steps_reported]
        if steps:
            stage.num_steps_reported = steps[-1].step
            self._monitors.steps_trained(stage.progress(), steps)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "steps", round: int | None = None) -> Iterator[Stage]:
        """A stage of `total` units (None: unknown), which ends with the block. It belongs to the current round, or to `round`."""
        label = self._round if round is None else f"round {round}/{self._num_rounds}"
        stage = Stage(label, self._number if round is None else round, name, total, unit, self._clock, self._on_change)
        self._begin(stage)
        try:
            yield stage
        except BaseException:
            self._end(stage, f"stopped at {stage.counted()}")
            raise
        self._end(stage, f"done, {stage.counted()}" if stage.done else "done")
        self._tell_stages()

    def _begin(self, stage: Stage) -> None:
        with self._lock:
            self._stages.append(stage)
            if self._live is not None:
                self._tasks[stage] = self._live.add_task(
                    printable(stage.name), total=stage.total, round=stage.round, counted="", details="", left=""
                )
            self._tell(stage, self._titled(stage, "started" if stage.total is None else f"started, {stage.total} {stage.unit}"))
            self._tell_stages()
            self._report(stage)

    def _on_change(self, stage: Stage) -> None:
        with self._lock:
            if self._live is not None:
                self._live.update(
                    self._tasks[stage], completed=stage.done, counted=stage.counted(), details=stage.details(), left=time_left(stage.left_s)
                )
            if self._clock() - stage.last_line_s >= self._line_every_s and stage.done != stage.total:
                self._tell(stage, self._titled(stage, stage.counted(), stage.details(), time_left(stage.left_s)))
            self._tell_stages()
            if self._clock() - stage.last_report_s >= MONITOR_EVERY_S:
                self._report(stage)

    def _break_silence(self) -> None:
        """Runs in its own thread, because the driver reports nothing while it waits for an engine or a file."""
        while not self._over.wait(min(1.0, self._quiet_s)):
            with self._lock:
                if self._stages:
                    self._tell_stages()
                if self._live is not None:
                    for stage, task in self._tasks.items():
                        self._live.update(task, left=time_left(stage.left_s))
                if self._stages and time.monotonic() - self._told_s >= self._quiet_s:
                    stage = self._stages[-1]
                    counted = stage.counted() if stage.done or stage.total else ""
                    self._tell(stage, self._titled(stage, counted, f"at work for {stage.elapsed_s:.0f} s"))

    def _end(self, stage: Stage, outcome: str) -> None:
        with self._lock:
            self._stages.remove(stage)
            if self._live is not None:
                self._live.remove_task(self._tasks.pop(stage))
            self._line(self._titled(stage, outcome, stage.details(), f"{stage.elapsed_s:.1f} s"))
            self._report(stage, is_over=True)

    def _report(self, stage: Stage, *, is_over: bool = False) -> None:
        stage.last_report_s = self._clock()
        self._monitors.stage_progressed(stage.progress(is_over=is_over))

    def _titled(self, stage: Stage, *parts: str) -> str:
        """A line about a stage, with its round and name."""
        title = " ".join(filter(None, (stage.round, stage.name)))
        return printable(f"{title}: {', '.join(filter(None, parts))}")

    def _line(self, text: str, style: str = "") -> None:
        with self._lock:
            self._told_s = time.monotonic()
            self._console.print(Text(text, style), soft_wrap=True)
            if self._listener is not None:
                self._listener.line(text)

    def _tell(self, stage: Stage, text: str) -> None:
        """A line about a stage for logs only; a terminal shows it live."""
        stage.last_line_s, self._told_s = self._clock(), time.monotonic()
        if self._live is None:
            self._line(text)
        elif self._listener is not None:
            self._listener.line(text)

    def _tell_stages(self) -> None:
        if self._listener is not None:
            self._listener.stages(self._stages)


class _BarWhereKnown(ProgressColumn):
    """A bar for stages with a known total; a pulsing bar would add nothing."""

    def __init__(self) -> None:
        super().__init__(Column(min_width=BAR_WIDTH))
        self._bar = BarColumn(bar_width=BAR_WIDTH)

    def render(self, task: Task) -> RenderableType:
        return "" if task.total is None else self._bar.render(task)


def _live_display(console: Console) -> Progress:
    return Progress(
        SpinnerColumn("dots" if encodes_unicode(console.encoding) else "line"),
        TextColumn("{task.fields[round]}", style="bold", markup=False),
        TextColumn("{task.description}", markup=False),
        _BarWhereKnown(),
        TextColumn("{task.fields[counted]}", markup=False),
        TimeElapsedColumn(Column(min_width=7)),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[details]}", style="green", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=console,
        expand=True,
        transient=True,
        refresh_per_second=4,
    )
