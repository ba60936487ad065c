"""Training the models of a round; with `overlap: 1`, while the engines write the records of the next round.

    driver's main thread    serve the champion ─► write round r+1 ──────────────────┐
    a thread beside it      train the candidate of round r ─► train its controls ───┴─► both are done: evaluate the candidate

The main thread owns the engines, and the thread only waits for the trainer's ranks. Nothing of round r+1 depends on how long either takes:
all its records are written by the champion, even if training ends earlier, and no engine is swapped before both are done. Whatever ends
one side ends the other: an error in training ends the writing when the next shard begins or ends, and an error or signal in the main
thread cancels the training.
"""

from __future__ import annotations

import time

from loop.run.background import in_background
from loop.run.contents import Run
from loop.run.models import Models
from loop.run.stages.clock import RoundClock
from loop.run.stages.controls import train_control
from loop.run.stages.training import Trained, train_candidate
from loop.run.stages.writing import ahead_of, write_ahead
from loop.run.workers import Workers
from loop.store.selected import SelectedRows


def train_and_write_ahead(
    run: Run, models: Models, workers: Workers, index: int, selected: SelectedRows, clock: RoundClock
) -> tuple[Trained, dict[str, Trained]]:
    """The candidate of round `index`, and the controls that were trained right after it, by name. Without anything to write ahead there are
    none: each control is then trained just before it is evaluated."""

    def train() -> Trained:
        with clock.stage("train"):
            return train_candidate(run, models, workers, index, selected)

    def train_all() -> tuple[Trained, dict[str, Trained]]:
        candidate, controls = train(), dict[str, Trained]()
        for name in run.config.control:
            with clock.stage("controls"):
                controls[name] = train_control(name, run, models, workers, index, selected)
        return candidate, controls

    ahead = ahead_of(run, models, index)
    if ahead is None:
        return train(), {}
    with clock.stage("swap"):
        workers.serve(ahead.model)
    started = time.perf_counter()
    with in_background(train_all, workers.trainer.cancel, "training") as training:
        with clock.stage("write_ahead"):
            write_ahead(run, workers, ahead, training.check)
        trained = training.result()
    both_s = training.elapsed_s + clock.seconds["write_ahead"]
    clock.seconds["overlapped"] = max(0.0, both_s - (time.perf_counter() - started))
    return trained
