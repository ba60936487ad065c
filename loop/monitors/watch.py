"""The live view of a run that another process drives: its rounds, the stages with bars, time left, the last decision and the log's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loop.errors import printable
from loop.monitors.progress import time_left
from loop.monitors.report import TABLE_WIDTH, status_tables
from loop.monitors.run_log import LOG, RunStatus, StageStatus, read_status
from loop.store.commits import RoundCommit
from loop.store.run_store import Store
from loop.store.storage.local import LocalStorage

RUNNING = "running"
_LOCAL_EVERY_S = 1.0
_REMOTE_EVERY_S = 10.0
_MAX_ROUNDS = 8
_NUM_LOG_LINES = 5
_BAR_WIDTH = 24


@dataclass(frozen=True)
class Seen:
    """A run at one moment."""

    run_id: str
    state: str
    """`running`, `finished` or `interrupted`."""
    commits: Sequence[RoundCommit]
    status: RunStatus | None
    log: Sequence[str]
    """The last lines of `run.log`."""


def see(store: Store, state: str) -> Seen:
    """What a run folder shows at this moment."""
    try:
        text = store.storage.read(LOG).decode(errors="replace")
    except FileNotFoundError:
        text = ""
    return Seen(store.read_run().run_id, state, store.commits(), read_status(store.storage), text.splitlines())


def watch(
    store: Store, state_of: Callable[[], str], ended: Callable[[str], Sequence[str]], console: Console, *, once: bool = False
) -> None:
    """Show the run until its driver ends; on anything but a terminal, the lines of its log.

    Args:
        state_of: the state of the run now.
        ended: lines on how the last driver ended, for a state.
        once: show it once, and return.
    """
    every_s = _LOCAL_EVERY_S if isinstance(store.storage, LocalStorage) else _REMOTE_EVERY_S
    seen = see(store, state_of())
    if not once and seen.state == RUNNING:
        seen = _follow(seen, lambda: see(store, state_of()), console, every_s)
    console.print(view(seen, min(console.width, TABLE_WIDTH)))
    for line in ended(seen.state) if seen.state != RUNNING else ():
        console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


def _follow(seen: Seen, look: Callable[[], Seen], console: Console, every_s: float) -> Seen:
    """Show the run while it is driven; returns it as it ended."""
    if not console.is_terminal:
        return _follow_log(seen, look, console, every_s)
    width = min(console.width, TABLE_WIDTH)
    with Live(view(seen, width), console=console, auto_refresh=False, transient=True) as live:
        while seen.state == RUNNING:
            time.sleep(every_s)
            seen = look()
            live.update(view(seen, width), refresh=True)
    return seen


def _follow_log(seen: Seen, look: Callable[[], Seen], console: Console, every_s: float) -> Seen:
    num_shown = max(0, len(seen.log) - _NUM_LOG_LINES)
    while True:
        for line in seen.log[num_shown:]:
            console.print(printable(line), highlight=False, soft_wrap=True, markup=False)
        num_shown = len(seen.log)
        if seen.state != RUNNING:
            return seen
        time.sleep(every_s)
        seen = look()


def view(seen: Seen, width: int) -> RenderableType:
    """Everything in one view."""
    parts: list[RenderableType] = []
    if seen.state == RUNNING and seen.status is not None:
        parts.append(_stages(seen.status))
    parts += status_tables(seen.run_id, seen.state, seen.commits[-_MAX_ROUNDS:], width)
    decided = next((commit for commit in reversed(seen.commits) if commit.decision is not None), None)
    if decided is not None and decided.decision is not None:
        parts.append(Text(printable(f"round {decided.round} was {decided.state.value}: {decided.decision.reason}")))
    if seen.state == RUNNING:
        parts += [Text(printable(line), style="dim", overflow="ellipsis", no_wrap=True) for line in seen.log[-_NUM_LOG_LINES:]]
    return Group(*parts)


def _stages(status: RunStatus) -> RenderableType:
    stages = [*status.beside, *([status.stage] if status.stage else [])]
    age_s = max(0.0, time.time() - status.updated_at)
    if not stages:
        return Text(f"between two stages (written {age_s:.0f} s ago)")
    table = Table.grid(padding=(0, 2))
    for stage in stages:
        table.add_row(
            Text(printable(stage.title), style="bold"), _bar(stage), stage.counted, _clock(stage, age_s),
            Text(printable(stage.details), style="green"),
        )  # fmt: skip
    return table


def _bar(stage: StageStatus) -> RenderableType:
    return "" if stage.total is None else ProgressBar(max(1, stage.total), stage.done, width=_BAR_WIDTH)


def _clock(stage: StageStatus, age_s: float) -> str:
    """Seconds of work, and what is left of them; both go on between two writes."""
    left_s = None if stage.left_s is None else max(0.0, stage.left_s - age_s)
    return ", ".join(filter(None, (f"{stage.elapsed_s + age_s:.0f} s", time_left(left_s))))
