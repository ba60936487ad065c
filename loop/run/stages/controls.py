"""Controls: models trained beside the candidate without one ingredient, and evaluated on the same questions.

| control         | training set                                                                                              |
|-----------------|-----------------------------------------------------------------------------------------------------------|
| `seed_only`     | seed data alone                                                                                           |
| `no_correction` | the candidate's, with VIG's original answers in place of the corrected ones; records for which VIG gave   |
|                 | no answer are left out and counted                                                                        |

Everything else is the candidate's: number of samples and steps, schedule, augmentation, seeds. Filters and selection are the same, too,
including those that look at corrected answers: `no_correction` measures the answers that are learned, not which records are. A filter
that keeps only answers unchanged by correction would leave no difference to measure, and is refused together with `no_correction`.

A control has its own line of models. Its start is chosen like the candidate's, with the control of the champion's round in place of the
champion (the seed model until a candidate is accepted): after an acceptance the control continues from the one trained in that round,
after a rejection from the same start as before. So a control has always had as many trainings, of as many steps, as the candidate, and
has never learned from the ingredient it omits. Started from the champion, it would have, and would only show what the last round added.
The control of `benchmarks.quality.gain` is a separate run with its own decisions. A control here is never chosen, while the candidate is
chosen on the acceptance sets: compare the two on the held-out sets, as the metrics do.

Controls decide nothing, and a round without them is committed as if they did not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from loop.run.contents import Run
from loop.run.models import Models
from loop.run.stages.clock import RoundClock
from loop.run.stages.evaluation import evaluate, mean_scores
from loop.run.stages.training import Trained, hyperparameters, train
from loop.run.stages.training_set import Generated, generated_so_far, num_without_original
from loop.run.workers import Workers
from loop.store.commits import FileEntry
from loop.store.selected import SelectedRows
from policies.acceptance.paired import Comparison, compare, interval, pooled
from policies.scoring.predictions import Predictions


@dataclass
class Controls:
    """What the controls of a round add to its commit record."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Under `control/NAME/`: `train_loss` and the like, `accuracy/SET` and `accuracy_acceptance/SET` (or another measure, depending on the
    metric of the set), and the candidate's lead over the control on held-out sets, as a share with its 95 % interval: `difference/SET`,
    `difference_low/SET`, `difference_high/SET`, and over all questions `pooled_difference`, `pooled_difference_low`,
    `pooled_difference_high`."""
    files: list[FileEntry] = field(default_factory=list)


def run_controls(
    run: Run,
    models: Models,
    workers: Workers,
    index: int,
    selected: SelectedRows,
    candidate: Predictions,
    clock: RoundClock,
    already_trained: Mapping[str, Trained],
) -> Controls:
    """Train and evaluate the configured controls; finished work is reused."""
    done = Controls()
    for name in run.config.control:
        with clock.stage("controls"):
            trained = already_trained.get(name) or train_control(name, run, models, workers, index, selected)
            predictions, predictions_part = evaluate(run, workers, index, trained.model, RoundClock(), f"predictions{_suffix(name)}")
        found = {**trained.metrics, **mean_scores("", run.sets, predictions), **differences(predictions, candidate)}
        if name == "no_correction":
            found["num_left_out"] = float(num_without_original(selected))
        done.metrics |= {f"control/{name}/{key}": value for key, value in found.items()}
        done.files += [trained.part.entry, *trained.model.files, predictions_part.entry]
    return done


def train_control(name: str, run: Run, models: Models, workers: Workers, index: int, selected: SelectedRows) -> Trained:
    """Train one control, or reuse it if it is finished."""
    start, generated = run.policies.start.start(models.base(), models.control(name)), partial(generated_for, name, run, index, selected)
    return train(run, models, workers, index, start, hyperparameters(run, selected), generated, _suffix(name))


def _suffix(name: str) -> str:
    return f"-control-{name}"


def generated_for(name: str, run: Run, index: int, selected: SelectedRows) -> list[Generated]:
    """The generated records that a control is trained on."""
    if name == "seed_only":
        return []
    return [replace(one, corrected=False) for one in generated_so_far(run, index, selected)]


def differences(control: Predictions, candidate: Predictions) -> dict[str, float]:
    """The candidate's lead over the control on the held-out sets, with 95 % intervals; see `Controls.metrics`."""
    held_out = [name for name in control if name.startswith("held_out/")]
    by_set = {name: compare(name, *([one.score for one in each[name]] for each in (control, candidate))) for name in held_out}
    found: dict[str, float] = {}
    for name, one in by_set.items():
        found |= _with_interval("difference", f"/{name.partition('/')[2]}", [one])
    return found | _with_interval("pooled_difference", "", list(by_set.values()))


def _with_interval(key: str, of: str, compared: list[Comparison]) -> dict[str, float]:
    low, high = interval(compared)
    return {f"{key}{of}": pooled(compared).difference, f"{key}_low{of}": low, f"{key}_high{of}": high}
