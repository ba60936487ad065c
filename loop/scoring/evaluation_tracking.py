"""Logs an evaluation to MLflow: a run with its settings, scores and files.

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
from pathlib import Path
from typing import Any

from loop.credentials import masked, masked_value
from loop.monitors.tracking import Mirror, child_environment, cut, flatten_parameters, mlflow_key
from policies.texts import free_name

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
DEFAULT_EXPERIMENT = "vigc"
_MAX_REASON_CHARACTERS = 600


def log_evaluation(
    folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any], files: Sequence[Path], timeout_s: float = TIMEOUT_S
) -> bool:
    """Log an evaluation to `MLFLOW_TRACKING_URI`, in the experiment `MLFLOW_EXPERIMENT_NAME`; returns whether that succeeded.

    Waits at most `timeout_s`. A failure logs a warning and raises nothing.

    Args:
        folder: folder of the evaluation.
        facts: everything the answers depend on; values are texts or nested mappings.
        scores: as in `score.json`; empty if a judge has to score.
        files: artifacts of the run.
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
            encoding="utf-8", errors="replace", timeout=timeout_s,
            env={**child_environment(), "PYTHONIOENCODING": "utf-8"}, start_new_session=True, check=False,
        )  # fmt: skip
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"timed out after {timeout_s:.0f} s"
    if reason:
        shown = cut(masked(reason), _MAX_REASON_CHARACTERS)
        log.warning("MLflow at %s does not have this evaluation: %s; the same command logs it again", masked(order["tracking_uri"]), shown)
    return not reason


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
    mirror = Mirror(**{name: order[name] for name in ("tracking_uri", "experiment", "run_name", "run_id", "parameters")})
    try:
        mirror.log_evaluation(order["metrics"], [Path(file) for file in order["files"]])
    except Exception as error:
        # The process boundary: any error of MLflow becomes the last line, which the parent logs as a warning.
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _main()
