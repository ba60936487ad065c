"""The numbers, tables and the figure that MLflow shows of committed rounds. MLflow groups charts by the part of a name before `/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loop.config.tracking_config import mlflow_key
from loop.monitors.mirror.facts import RoundFacts
from loop.monitors.mirror.live import milliseconds
from loop.store.commits import RoundCommit, RoundState
from policies.counts import REJECTED
from policies.records import Record
from policies.scoring.answer_metrics import ACCURACY, MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Metric

SAMPLE_COLUMNS = ("image_id", "type", "question", "original_answer", "answer", "reasons", "mean_logprob")
_GROUPS = {
    "train_loss": "train/mean_loss",
    "train_final_loss": "train/final_loss",
    "train_target_tokens": "train/target_tokens",
    "correct_before": "correct/before",
    "correct_after": "correct/after",
    "correct_kept": "correct/kept",
    "distinct_2": "texts/distinct_2",
    "mean_answer_words": "texts/mean_answer_words",
}
"""What ungrouped metrics of a commit are called in MLflow."""


def round_metrics(commit: RoundCommit, facts: RoundFacts | None = None) -> list[Metric]:
    """`round_values` as MLflow takes them, at step = round and the time of the commit."""
    from mlflow.entities import Metric

    committed_ms = milliseconds(commit.committed_at)
    return [Metric(name, value, committed_ms, commit.round) for name, value in round_values(commit, facts).items()]


def model_metrics(commit: RoundCommit, model_id: str, *, is_champion: bool) -> list[Metric]:
    """The scores of the model that the round has made, as metrics of this logged model: the candidate's, and those of the champion if it
    is that one. The run has the same points."""
    from mlflow.entities import Metric

    groups = {f"candidate_{measure}" for measure in MEASURES} | (set(MEASURES) if is_champion else set())
    return [
        Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id)
        for point in round_metrics(commit)
        if point.key.partition("/")[0].removesuffix("_acceptance") in groups
    ]


def round_values(commit: RoundCommit, facts: RoundFacts | None = None) -> dict[str, float]:
    """The numbers of a round: `counts/...`, `rejected/REASON`, `kept/FILTER` (shares of what a filter saw), scores by set with their
    intervals (`accuracy/SET`, `accuracy_low/SET`, `accuracy_high/SET`), `decision/...`, `train/...`, `time/STAGE` in seconds,
    `idle/engines` and `idle/trainer` (shares of the round), and `findings/KIND`."""
    values = _counted(commit) | {_GROUPS.get(name, name): value for name, value in commit.metrics.items()}
    for name, (low, high) in (RoundFacts() if facts is None else facts).intervals.items():
        measure, _, of = name.partition("/")
        values |= {f"{measure}_low/{of}": low, f"{measure}_high/{of}": high}
    if commit.decision is not None:  # one level: a file-based MLflow cannot store metric `a` beside `a/b`
        values |= {f"decision/{name.replace('/', '.')}": number for name, number in commit.decision.numbers.items()}
    values |= {f"time/{stage}": seconds for stage, seconds in commit.stage_seconds.items()}
    values |= {f"idle/{who}": share for who, share in commit.idle.items()}
    for finding in commit.reported:
        values[f"findings/{finding.kind}"] = values.get(f"findings/{finding.kind}", 0) + finding.count
    return {mlflow_key(name): float(value) for name, value in values.items()}


def _counted(commit: RoundCommit) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, count in commit.counts.items():
        values[f"rejected/{name.removeprefix(REJECTED)}" if name.startswith(REJECTED) else f"counts/{name}"] = count
    if commit.counts.get("generated"):
        values["kept/all"] = commit.counts.get("accepted", 0) / commit.counts["generated"]
    return values | {f"kept/{one.filter}": one.kept / one.seen for one in commit.filters if one.seen}


def sample_table(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Records as the columns and rows of an MLflow table."""
    rows = [
        [
            record.image_id,
            record.question_type,
            record.question,
            record.original_answer,
            record.answer,
            ", ".join(record.reasons),
            record.mean_logprob,
        ]
        for record in records
    ]
    return {"columns": list(SAMPLE_COLUMNS), "data": rows}


def accuracy_figure(commits: Sequence[RoundCommit]) -> Figure:
    """Mean score by round on each held-out set: a line for the champion, a cross for each candidate that was rejected."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.0, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = sorted({name for commit in commits for name in commit.metrics if name.partition("/")[0] in MEASURES})
    is_accuracy = all(name.startswith(f"{ACCURACY}/") for name in names)
    for name in names:
        measured = [commit for commit in commits if name in commit.metrics]
        label = _as_label(name, with_measure=not is_accuracy)
        (line,) = axes.plot([c.round for c in measured], [100 * c.metrics[name] for c in measured], "o-", label=label)
        rejected = [c for c in commits if c.state is RoundState.REJECTED and f"candidate_{name}" in c.metrics]
        candidates = [100 * c.metrics[f"candidate_{name}"] for c in rejected]
        axes.plot([c.round for c in rejected], candidates, "x", color=line.get_color())
    scale = "accuracy, %" if is_accuracy else "mean score, 0 to 100"
    axes.set(xlabel="round", ylabel=scale, title="Champion by round (x: rejected candidate)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if names:
        axes.legend()
    return figure


def _as_label(metric: str, *, with_measure: bool) -> str:
    """A set's name as matplotlib shows it: a dollar sign would start a formula, and names that start with an underscore are left out."""
    measure, _, name = metric.partition("/")
    name = (f"{name}, {measure}" if with_measure and measure != ACCURACY else name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
