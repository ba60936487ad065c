"""Logs an evaluation to MLflow: a run with its settings, scores, data, model and files.

A child process with a time limit does this, because importing MLflow takes seconds and its server may be slow or unreachable; the
evaluation is already on disk. If logging fails, running the same command again retries it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loop.credentials import masked, masked_value
from loop.monitors.mirror.facts import DataSet
from loop.monitors.mirroring import source_tags
from loop.monitors.tracking import Mirror, child_environment, cut, default_tracking_uri, flatten_parameters, mlflow_key
from policies.metrics import wilson
from policies.texts import free_name

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
_MAX_REASON_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What MLflow gets of an evaluation."""

    folder: Path
    facts: Mapping[str, Any]
    """Everything the answers depend on; values are texts or nested mappings."""
    scores: Mapping[str, Any]
    """As in `score.json`; empty if a judge has to score."""
    files: Sequence[Path]
    """Artifacts of the run."""
    data: Sequence[DataSet] = ()
    weight_version: str = ""
    checkpoint: str = ""
    """Of the model, as a URI."""


def log_evaluation(evaluation: Evaluation, experiment: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Log an evaluation to `MLFLOW_TRACKING_URI`, or the SQLite file beside its folder; returns whether that succeeded.

    Waits at most `timeout_s`. A failure logs a warning and raises nothing.
    """
    folder, facts = evaluation.folder, evaluation.facts
    order = {
        "mirror": {
            "tracking_uri": default_tracking_uri(folder, os.environ),
            "experiment": experiment,
            "run_name": folder.name,
            "run_id": f"evaluation-{folder.name}-{facts['digest']}",
            "parameters": {key: masked_value(key, value) for key, value in flatten_parameters(facts).items()},
            "source": source_tags(),
        },
        "logged": {
            "metrics": metrics_of(with_intervals(evaluation.scores)),
            "files": [str(file.absolute()) for file in evaluation.files],
            "data": [asdict(one) for one in evaluation.data],
            "weight_version": evaluation.weight_version,
            "checkpoint": evaluation.checkpoint,
        },
        "timeout_s": timeout_s,
    }
    uri = order["mirror"]["tracking_uri"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "loop.scoring.evaluation_tracking"], input=json.dumps(order), capture_output=True, text=True,
            encoding="utf-8", errors="replace", timeout=timeout_s,
            env={**child_environment(), "PYTHONIOENCODING": "utf-8", "MLFLOW_TRACKING_URI": uri}, start_new_session=True, check=False,
        )  # fmt: skip
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"timed out after {timeout_s:.0f} s"
    if reason:
        shown = cut(masked(reason), _MAX_REASON_CHARACTERS)
        log.warning("MLflow at %s does not have this evaluation: %s; the same command logs it again", masked(uri), shown)
    return not reason


def with_intervals(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores with the 95 % interval of each accuracy, in percent, whose number of questions is known: `accuracy_low`, `accuracy_high`."""
    found = {name: with_intervals(value) if isinstance(value, Mapping) else value for name, value in scores.items()}
    accuracy, count = found.get("accuracy"), found.get("num_questions")
    if isinstance(accuracy, int | float) and isinstance(count, int) and count:
        low, high = wilson(accuracy / 100, count)
        found |= {"accuracy_low": 100 * low, "accuracy_high": 100 * high}
    return found


def metrics_of(scores: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a score under valid MLflow keys: `accuracy`, `by_category/animal`. Names that map to the same key are numbered."""
    found: dict[str, float] = {}
    for name, value in _figures(scores):
        found[free_name(mlflow_key(name), found)] = value
    return found


def _figures(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        path = f"{prefix}{str(name).replace('/', '.')}"  # a file-based MLflow cannot store both metrics `a` and `a/b`
        if isinstance(value, Mapping):
            yield from _figures(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


def _main() -> None:
    """Entry point of the child process."""
    order = json.load(sys.stdin)
    signal.alarm(int(order["timeout_s"]) + 5)  # in case the parent was killed
    logged = order["logged"]
    data, files = [DataSet(**one) for one in logged["data"]], [Path(file) for file in logged["files"]]
    try:
        mirror = Mirror(**order["mirror"])
        mirror.log_evaluation(logged["metrics"], files, data, logged["weight_version"], logged["checkpoint"])
    except Exception as error:
        # The process boundary: any error of MLflow becomes the last line, which the parent logs as a warning.
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _main()
