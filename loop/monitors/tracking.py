"""Mirror committed rounds to MLflow, never on the commit path.

Everything that is mirrored is in committed records, so an outage of MLflow loses nothing: what it lacks is found by tags and replayed
with the recorded timestamps once it answers again. MLflow stores a metric with the same key, step, value and timestamp once, every
other write here replaces the old value, and a round counts as mirrored only when its last write, the tag `vigc.mirrored`, is there.
An interrupted mirror is therefore simply repeated and leaves no duplicates.

The driver does not call this itself: `loop.monitors.tracking_process` runs it in another process, so that MLflow cannot delay it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from loop.config.metric_names import mlflow_key
from loop.credentials import masked, masked_value
from loop.store.commits import RoundCommit, RoundState
from policies.records import Record
from policies.scoring.answer_metrics import ACCURACY, MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Metric, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

Samples = Callable[[RoundCommit], tuple[list[Record], list[Record]]]
"""Some accepted and some rejected records of a round."""
ChampionFolder = Callable[[RoundCommit], Path | str | None]
"""The champion's checkpoint folder after a round: a local path, or the URI of a store elsewhere; None if it has been pruned."""
LoopState = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

RUN_TAG = "vigc.run_id"
ROUND_TAG = "vigc.round"
MIRRORED_TAG = "vigc.mirrored"
FINDINGS_TAG = "vigc.findings"
"""A line for each finding of a round; their counts are the metrics `findings/KIND`."""
CHAMPION_ALIAS = "champion"
PRUNED = "pruned"
"""Tag `checkpoint` of a model version whose weights the run has deleted."""
SAMPLE_COLUMNS = ("image_id", "type", "question", "original_answer", "answer", "reasons", "mean_logprob")

CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with MLflow's own defaults one call to a dead server blocks for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
MAX_PARAMETER_CHARACTERS = 500  # the limit of older servers; the whole configuration is in the store
MAX_TAG_CHARACTERS = 5000
PARAMETERS_PER_BATCH = 100  # MLflow's limit
METRICS_PER_BATCH = 1000  # likewise


def default_tracking_uri(run_dir: Path, environ: Mapping[str, str]) -> str:
    """`MLFLOW_TRACKING_URI` if it is set, else a SQLite file beside the run folder, shared by the runs there."""
    return environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"


def child_environment() -> dict[str, str]:
    """The environment of a child process of Python that imports this project's packages."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def flatten_parameters(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as dotted keys and text values, credentials masked; a list of plain values stays one value, as JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat |= flatten_parameters(value, f"{name}.")
        else:
            flat[name] = masked_value(name, value if isinstance(value, str) else json.dumps(value, default=str))
    return flat


@dataclass(frozen=True)
class Mirror:
    """The MLflow side of one loop: a parent run, a child run per round, and the champion in the model registry.

    Plain data until its first use. Methods talk to MLflow in this process and raise what MLflow raises (`MlflowException`,
    or `OSError` of the artifact folder); the short time limits of `CLIENT_ENVIRONMENT` apply unless the environment sets its own.
    """

    tracking_uri: str
    experiment: str
    run_name: str
    run_id: str
    parameters: Mapping[str, str]
    """Dotted keys and text values, see `flatten_parameters`."""
    registered_model: str | None = None
    """The model whose alias `champion` follows the run; None is one for each run name."""

    def log_commits(self, commits: Sequence[RoundCommit], samples: Samples, champion_folder: ChampionFolder) -> list[int]:
        """Mirror what is missing of `commits` (all of the run, in any order); returns the rounds that were missing."""
        commits = sorted(commits, key=lambda commit: commit.round)
        experiment_id = self._experiment_id()
        runs = self._runs(experiment_id)
        parent_id = self._open_parent(experiment_id, runs.get(None), commits)
        pending = [commit for commit in commits if not _is_mirrored(runs.get(commit.round))]
        for commit in pending:
            child = runs.get(commit.round) or self._create_child(experiment_id, parent_id, commit)
            self._fill_child(child.info.run_id, commit, samples(commit))
            if _is_new_champion(commit, commits):
                self._register(child.info.run_id, commit, champion_folder(commit))
            self._client.log_batch(parent_id, metrics=round_metrics(commit))
            if commit is pending[-1]:
                self._client.log_figure(parent_id, accuracy_figure(commits), "accuracy_by_round.png")
            self._complete_child(child.info.run_id, commit)
        return [commit.round for commit in pending]

    def close(self, state: LoopState) -> None:
        """Set the status of the parent run."""
        experiment_id = self._experiment_id()
        parent_id = self._open_parent(experiment_id, self._runs(experiment_id).get(None), ())
        if state != "RUNNING":
            self._client.set_terminated(parent_id, state)

    def log_evaluation(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Log a finished run of this name and id with these metrics and files; an existing one is overwritten."""
        from mlflow.entities import Metric

        experiment_id = self._experiment_id()
        run = self._runs(experiment_id).get(None)
        known = run.data.metrics if run else {}
        run_id, now_ms = self._open_parent(experiment_id, run, ()), _milliseconds(time.time())
        found = [Metric(key, value, now_ms, 0) for key, value in metrics.items() if known.get(key) != value]
        for start in range(0, len(found), METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=found[start : start + METRICS_PER_BATCH])
        for file in files:
            self._client.log_artifact(run_id, str(file))
        self._client.set_terminated(run_id, "FINISHED")

    @property
    def model_name(self) -> str:
        """Name of the registered model, valid for the registry."""
        return re.sub(r"[/:'\"]", "_", self.registered_model or f"vigc-{self.run_name}")

    @cached_property
    def _client(self) -> MlflowClient:
        for name, value in CLIENT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is not None:
            return found.experiment_id
        location = None
        if self.tracking_uri.startswith("sqlite:///"):
            location = (Path(self.tracking_uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
        with _landed_before():
            self._client.create_experiment(self.experiment, artifact_location=location)
        created = self._client.get_experiment_by_name(self.experiment)
        assert created is not None
        return created.experiment_id

    def _runs(self, experiment_id: str) -> dict[int | None, Run]:
        """This loop's runs by round; the parent's key is None."""
        query = f"tags.`{RUN_TAG}` = '{self.run_id}'"
        page = self._client.search_runs([experiment_id], query)
        found = list(page)
        while page.token:
            page = self._client.search_runs([experiment_id], query, page_token=page.token)
            found += page
        runs: dict[int | None, Run] = {}
        for run in sorted(found, key=lambda run: (-len(run.data.metrics), run.info.run_id)):
            number = run.data.tags.get(ROUND_TAG)
            first = runs.setdefault(None if number is None else int(number), run)
            if first is not run:
                # MLflow's client retried a create that timed out, and both arrived: delete the emptier one.
                self._client.delete_run(run.info.run_id)
        return runs

    def _open_parent(self, experiment_id: str, parent: Run | None, commits: Sequence[RoundCommit]) -> str:
        if parent is None:
            start_s = commits[0].started_at if commits else time.time()
            parent = self._client.create_run(experiment_id, _milliseconds(start_s), {RUN_TAG: self.run_id}, self.run_name)
        elif parent.info.status != "RUNNING":
            self._client.update_run(parent.info.run_id, status="RUNNING")
        self._log_parameters(parent)
        return parent.info.run_id

    def _log_parameters(self, parent: Run) -> None:
        """Parameters cannot be changed in MLflow: the first run's values stay, a resumed run's changes go into a tag."""
        from mlflow.entities import Param

        wanted = {mlflow_key(key): cut(value, MAX_PARAMETER_CHARACTERS) for key, value in self.parameters.items()}
        known = parent.data.params
        missing = [Param(key, value) for key, value in wanted.items() if key not in known]
        for start in range(0, len(missing), PARAMETERS_PER_BATCH):
            self._client.log_batch(parent.info.run_id, params=missing[start : start + PARAMETERS_PER_BATCH])
        changed = {key: value for key, value in wanted.items() if known.get(key, value) != value}
        if changed:
            self._client.set_tag(parent.info.run_id, "vigc.changed_parameters", cut(json.dumps(changed), MAX_TAG_CHARACTERS))

    def _create_child(self, experiment_id: str, parent_id: str, commit: RoundCommit) -> Run:
        tags = {
            "mlflow.parentRunId": parent_id,
            RUN_TAG: self.run_id,
            ROUND_TAG: str(commit.round),
            "vigc.state": commit.state.value,
            "vigc.champion": commit.champion,
        }
        if commit.decision is not None:
            tags["vigc.decision"] = cut(commit.decision.reason, MAX_TAG_CHARACTERS)
        if commit.reported:
            tags[FINDINGS_TAG] = cut("\n".join(finding.line for finding in commit.reported), MAX_TAG_CHARACTERS)
        return self._client.create_run(experiment_id, _milliseconds(commit.started_at), tags, f"round {commit.round}")

    def _fill_child(self, child_id: str, commit: RoundCommit, samples: tuple[list[Record], list[Record]]) -> None:
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        self._client.log_batch(child_id, metrics=round_metrics(commit))
        tables = dict(zip(("accepted.json", "rejected.json"), samples, strict=True))
        for name, records in tables.items():
            # `log_table` would append to what an interrupted mirror left. This writes the same file and tag.
            self._client.log_text(child_id, json.dumps(sample_table(records)), name)
        self._client.set_tag(child_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([{"path": name, "type": "table"} for name in tables]))

    def _complete_child(self, child_id: str, commit: RoundCommit) -> None:
        self._client.set_terminated(child_id, "FINISHED", end_time=_milliseconds(commit.committed_at))
        self._client.set_tag(child_id, MIRRORED_TAG, "complete")

    def _register(self, child_id: str, commit: RoundCommit, folder: Path | str | None) -> None:
        """Register the champion as a version of the registered model, under its alias. The weights stay where they are."""
        name = self.model_name
        if not self._client.search_registered_models(f"name='{name}'"):
            with _landed_before():
                self._client.create_registered_model(name)
        wanted = {RUN_TAG: self.run_id, "weight_version": commit.champion}
        found = self._versions(name, wanted)
        if not found:
            checkpoint = folder.resolve().as_uri() if isinstance(folder, Path) else masked(folder or PRUNED)
            tags = {**wanted, "round": str(commit.round), "checkpoint": checkpoint}
            source = self._source(child_id, checkpoint, tags)
            self._client.create_model_version(name, source, run_id=child_id, tags=tags)
            found = self._versions(name, wanted)
        for repeated in found[1:]:  # as with runs, see `_runs`
            self._client.delete_model_version(name, str(repeated.version))
        self._client.set_registered_model_alias(name, CHAMPION_ALIAS, str(found[0].version))

    def _versions(self, name: str, tags: Mapping[str, str]) -> list[ModelVersion]:
        """Versions of the registered model with these tags, oldest first."""
        versions = self._client.search_model_versions(f"name='{name}'")
        return sorted((version for version in versions if tags.items() <= version.tags.items()), key=lambda version: int(version.version))

    def _source(self, child_id: str, checkpoint: str, description: dict[str, str]) -> str:
        """The source of a model version. Tracking servers accept no local folder, so there, and for a pruned checkpoint, it is a note in
        the round's artifacts."""
        if checkpoint != PRUNED and not (self.tracking_uri.startswith("http") and urlsplit(checkpoint).scheme == "file"):
            return checkpoint
        self._client.log_text(child_id, json.dumps(description, indent=2), "champion/checkpoint.json")
        return f"runs:/{child_id}/champion"


def round_metrics(commit: RoundCommit) -> list[Metric]:
    """Counts, filters, metrics, the decision's numbers, stage seconds and counts of findings of a round, at step = round and the time of
    its commit."""
    from mlflow.entities import Metric

    values: dict[str, float] = {f"counts/{name}": count for name, count in commit.counts.items()}
    for count in commit.filters:
        values |= {f"filters/{count.filter}/seen": count.seen, f"filters/{count.filter}/kept": count.kept}
    values |= commit.metrics
    if commit.decision is not None:  # one level: a file-based MLflow cannot store metric `a` beside `a/b`
        values |= {f"decision/{name.replace('/', '.')}": number for name, number in commit.decision.numbers.items()}
    values |= {f"seconds/{stage}": seconds for stage, seconds in commit.stage_seconds.items()}
    for finding in commit.reported:
        values[f"findings/{finding.kind}"] = values.get(f"findings/{finding.kind}", 0) + finding.count
    committed_ms = _milliseconds(commit.committed_at)
    return [Metric(mlflow_key(name), float(value), committed_ms, commit.round) for name, value in values.items()]


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


@contextmanager
def _landed_before() -> Iterator[None]:
    """Ignore that the object already exists: MLflow's client repeats a create whose reply was lost."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _is_mirrored(run: Run | None) -> bool:
    return run is not None and MIRRORED_TAG in run.data.tags


def _is_new_champion(commit: RoundCommit, commits: Sequence[RoundCommit]) -> bool:
    earlier = [other.champion for other in commits if other.round < commit.round]
    return not earlier or earlier[-1] != commit.champion


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1000)


def cut(text: str, max_characters: int) -> str:
    """`text` within `max_characters`, with a note of what was cut."""
    if len(text) <= max_characters:
        return text
    note = f" ... (cut, {len(text)} characters)"
    return text[: max_characters - len(note)] + note
