"""`vigc watch`: the view of a run that another process drives."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from loop.monitors import watch as watching
from loop.monitors.progress import RunProgress
from loop.monitors.run_log import logged
from loop.monitors.watch import see, view, watch
from loop.store.commits import Decision, RoundState
from loop.store.run_store import Store
from tests.loop.store.make_run import commit_of


def printed(store: Store, states: Iterator[str], *, once: bool = False) -> str:
    out = io.StringIO()
    watch(store, lambda: next(states), lambda state: [f"ended: {state}"], Console(file=out, width=120), once=once)
    return out.getvalue()


def test_a_running_run_is_shown_with_its_stages_time_left_and_last_decision(store: Store) -> None:
    store.commit(commit_of(store))
    decision = Decision(accepted=False, reason="the lead is too small")
    store.commit(commit_of(store, 1, state=RoundState.REJECTED, decision=decision, counts={"generated": 80, "accepted": 31}))
    clock = iter(range(0, 10_000, 5))
    out = io.StringIO()
    with logged(store.storage) as log, RunProgress(Console(file=io.StringIO()), listener=log, clock=lambda: float(next(clock))) as progress:
        progress.round(2, 5)
        progress.note("waiting for room for 1 engine")
        with progress.stage("train", total=200) as stage:
            stage.advance(10)
            stage.advance(10)
            log.stages([stage])
            log._write()
            Console(file=out, width=120, force_terminal=True, color_system=None).print(view(see(store, "running"), 100))
    shown = out.getvalue()
    for part in ("round 2/5 train", "20/200 steps", "left", "running, champion r0", "round 1 was rejected: the lead is too small"):
        assert part in shown
    assert "━" in shown
    assert "waiting for room for 1 engine" in shown


def test_a_run_is_followed_until_its_driver_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LOCAL_EVERY_S", 0.0)
    with logged(store.storage) as log:

        def states() -> Iterator[str]:
            for text in ("one line", "another line"):
                log.line(text)
                yield "running"
            yield "interrupted"

        shown = printed(store, states())
    assert shown.index("one line") < shown.index("another line") < shown.index("ended: interrupted")
    assert shown.count("another line") == 1
    assert "ended: finished" in printed(store, iter(["finished"]))


def test_a_run_can_be_shown_once(store: Store) -> None:
    store.commit(commit_of(store))
    assert "running, champion r0" in printed(store, iter(["running"]), once=True)
