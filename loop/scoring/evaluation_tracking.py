"""An evaluation in MLflow: a run with what was asked of which model, its scores and its files.

A child process of its own writes it, with a bound on its time: importing MLflow takes seconds, its server may be slow or away, and the
evaluation is done and on disk by then. What could not be written is written by the same command again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loop.credentials import masked, masked_value
from loop.monitors.tracking import Mirror, cut, flatten_parameters, mlflow_key

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
DEFAULT_EXPERIMENT = "vigc"
_MAX_REASON_CHARACTERS = 600


def log_evaluation(
    folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any], files: Sequence[Path], timeout_s: float = TIMEOUT_S
) -> bool:
    """Write an evaluation to the MLflow of `MLFLOW_TRACKING_URI`, in the experiment of `MLFLOW_EXPERIMENT_NAME`; whether it took it.

    Waits `timeout_s` at most. A failure is warned of, and no error.

    Args:
        folder: of the evaluation.
        facts: all that the answers depend on, with text values or nested ones.
        scores: as in `score.json`; empty where a judge has to score.
        files: what becomes the run's artifacts.
    """
    order = {
        "tracking_uri": os.environ["MLFLOW_TRACKING_URI"],
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT,
        "run_name": folder.name,
        "run_id": f"evaluation-{folder.name}-{facts['digest']}",
        "parameters": {key: masked_value(key, value) for key, value in flatten_parameters(facts).items()},
        "metrics": metrics_of(scores),
        "files": [str(file.absolute()) for file in files],
        "timeout_s": timeout_s,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "loop.scoring.evaluation_tracking"], input=json.dumps(order), capture_output=True, text=True,
            encoding="utf-8", errors="replace", timeout=timeout_s, env=_environment(), start_new_session=True, check=False,
        )  # fmt: skip
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"it did not take it within {timeout_s:.0f} s"
    if reason:
        shown = cut(masked(reason), _MAX_REASON_CHARACTERS)
        log.warning("MLflow at %s lacks this evaluation: %s; the same command logs it again", masked(order["tracking_uri"]), shown)
    return not reason


def metrics_of(scores: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a score by keys that MLflow takes: `accuracy`, `by_category/animal`. Names that become one key are numbered."""
    found: dict[str, float] = {}
    for name, value in _figures(scores):
        key, number = mlflow_key(name), 1
        while key in found:
            number += 1
            key = f"{mlflow_key(name)}_{number}"
        found[key] = value
    return found


def _figures(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        path = f"{prefix}{str(name).replace('/', '.')}"  # a file-based MLflow holds no metric `a` beside `a/b`
        if isinstance(value, Mapping):
            yield from _figures(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))), "PYTHONIOENCODING": "utf-8"}


def _main() -> None:
    """The child's side."""
    order = json.load(sys.stdin)
    signal.alarm(int(order["timeout_s"]) + 5)  # where the parent was killed
    mirror = Mirror(**{name: order[name] for name in ("tracking_uri", "experiment", "run_name", "run_id", "parameters")})
    try:
        mirror.log_evaluation(order["metrics"], [Path(file) for file in order["files"]])
    except Exception as error:
        # The boundary of the process: whatever MLflow raises becomes the last line, which the parent warns with.
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _main()
