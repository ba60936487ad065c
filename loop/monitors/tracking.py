"""Mirror a run to MLflow, never on the commit path.

While a round runs, its child run gets the points of `loop.monitors.mirror.live`; once the round is committed, everything else. All of it
is in committed records or in local files, so an outage of MLflow loses nothing: what it lacks is found by tags and replayed with the
recorded timestamps once it answers again. MLflow stores a metric with the same key, step, value and timestamp once, every other write here
replaces the old value or looks for it first, and a round counts as mirrored only when its last write, the tag `vigc.mirrored`, is there.
An interrupted mirror is therefore simply repeated and leaves no duplicates.

The driver does not call this itself: `loop.monitors.tracking_process` runs it in another process, so that MLflow cannot delay it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.config.tracking_config import mlflow_key
from loop.credentials import masked, masked_value
from loop.monitors.mirror.answering import UNAVAILABLE
from loop.monitors.mirror.facts import DataSet, RoundFacts, dataset_inputs
from loop.monitors.mirror.live import POINTS_PER_BATCH, milliseconds
from loop.monitors.mirror.metrics import accuracy_figure, model_metrics, round_metrics, sample_table
from loop.monitors.mirror.models import landed_before, log_evaluated_model, log_model, register
from loop.monitors.mirror.notes import round_note, run_note
from loop.monitors.mirror.traces import TRACES_TAG, RoundTraces, TraceLog
from loop.monitors.monitor import Ending
from loop.store.commits import RoundCommit
from policies.records import Record

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

Samples = Callable[[RoundCommit], tuple[list[Record], list[Record]]]
"""Some accepted and some rejected records of a round."""
ChampionFolder = Callable[[RoundCommit], Path | str | None]
"""The champion's checkpoint folder after a round: a local path, or the URI of a store elsewhere; None if it has been pruned."""
Facts = Callable[[RoundCommit], RoundFacts]
"""What MLflow shows of a round beyond its commit and samples."""
WritePages = Callable[[int, Path], str]
"""Writes the gallery's page of a round and the index into a new folder; returns what they lack."""

RUN_TAG = "vigc.run_id"
ROUND_TAG = "vigc.round"
MIRRORED_TAG = "vigc.mirrored"
GALLERY_TAG = "vigc.gallery"
"""`complete`, or what the gallery's page of a round lacks."""
FINDINGS_TAG = "vigc.findings"
"""A line for each finding of a round; their counts are the metrics `findings/KIND`."""
NOTE_TAG = "mlflow.note.content"
KIND_TAG = "mlflow.experimentKind"
GALLERY = "gallery"
"""Folder of artifacts: all pages and the index of the parent run, and of a child run the page of its round."""
KIND = "custom_model_development"
"""What MLflow's UI calls machine learning: charts of metrics rather than traces."""

CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with MLflow's own defaults one call to a dead server blocks for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
MAX_PARAMETER_CHARACTERS = 500  # the limit of older servers; the whole configuration is in the store
MAX_TAG_CHARACTERS = 5000
CHILD_PARAMETERS = ("model", "generation.", "correction.", "filters.", "selection.", "mixing.", "training.", "acceptance.")
"""Parts of the config that child runs repeat, so that MLflow compares rounds of different runs."""
PARAMETERS_PER_BATCH = 100  # MLflow's limit
_ENDINGS: Mapping[Ending, str] = {
    "FINISHED": "the loop is over",
    "FAILED": "it ended with an error, see run.log; `vigc resume` continues it",
    "KILLED": "it was interrupted; `vigc resume` continues it",
}


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
    source: Mapping[str, str] = field(default_factory=dict)
    """Tags of MLflow that say who runs which code."""
    uri: str = ""
    """The run folder."""

    def open_round(self, round: int, started_ms: int) -> str | None:
        """The id of the child run of a round that is running; None if MLflow has all of the round."""
        experiment_id = self._experiment_id()
        runs = self._runs(experiment_id)
        child = runs.get(round)
        if is_mirrored(child):
            return None
        parent_id = self._open_parent(experiment_id, runs.get(None), started_ms)
        if child is None:
            return self._create_child(experiment_id, parent_id, round, started_ms).info.run_id
        if child.info.status != "RUNNING":
            self.client.update_run(child.info.run_id, status="RUNNING")
        return child.info.run_id

    def ids(self) -> tuple[str, str] | None:
        """The ids of the experiment and of the parent run; None if there is no such run. Creates nothing."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        parent = None if experiment is None else self._runs(experiment.experiment_id).get(None)
        return None if experiment is None or parent is None else (experiment.experiment_id, parent.info.run_id)

    def log_commits(
        self, commits: Sequence[RoundCommit], samples: Samples, champion_folder: ChampionFolder, facts: Facts = lambda _: RoundFacts(),
        traces: RoundTraces | None = None,
    ) -> list[int]:  # fmt: skip
        """Mirror what is missing of `commits` (all of the run, in any order); returns the rounds that were missing."""
        commits = sorted(commits, key=lambda commit: commit.round)
        experiment_id = self._experiment_id()
        runs = self._runs(experiment_id)
        parent_id = self._open_parent(experiment_id, runs.get(None), milliseconds(commits[0].started_at if commits else time.time()))
        pending = [commit for commit in commits if not is_mirrored(runs.get(commit.round))]
        for commit in pending:
            started_ms = milliseconds(commit.started_at)
            child = runs.get(commit.round) or self._create_child(experiment_id, parent_id, commit.round, started_ms)
            found = facts(commit)
            self._fill_child(child.info.run_id, commit, found, _before(commit, commits))
            self._log_samples(child.info.run_id, samples(commit))
            self._log_models(experiment_id, child.info.run_id, commit, commits, champion_folder, found)
            if traces is not None and commit.counts:
                self._log_traces(experiment_id, child.info.run_id, commit, traces)
            self.client.log_batch(parent_id, metrics=round_metrics(commit, found))
            if commit is pending[-1]:
                self.client.log_figure(parent_id, accuracy_figure(commits), "accuracy_by_round.png")
                self.client.set_tag(parent_id, NOTE_TAG, self._note(commits, "it is running"))
            self._complete_child(child.info.run_id, commit.committed_at)
        return [commit.round for commit in pending]

    def log_gallery(self, commits: Sequence[RoundCommit], write: WritePages) -> list[str]:
        """Log the gallery's page of each mirrored round that lacks one; returns what these pages lack. No page is tried twice."""
        from loop.gallery import rounds_with_pages
        from loop.gallery.folder import page_name

        runs = self._runs(self._experiment_id())
        problems: list[str] = []
        for commit in rounds_with_pages(commits):
            child = runs[commit.round]
            if GALLERY_TAG in child.data.tags:
                continue
            with tempfile.TemporaryDirectory(prefix="vigc-gallery-") as folder:
                pages = Path(folder) / GALLERY
                problem = write(commit.round, pages)
                if pages.exists():
                    self.client.log_artifact(child.info.run_id, str(pages / page_name(commit.round)), GALLERY)
                    self.client.log_artifacts(runs[None].info.run_id, str(pages), GALLERY)
            self.client.set_tag(child.info.run_id, GALLERY_TAG, cut(masked(problem), MAX_TAG_CHARACTERS) or "complete")
            problems += [problem] if problem else []
        return problems

    def close(self, state: Ending, commits: Sequence[RoundCommit] = ()) -> None:
        """Set the status of the parent run, and of the round that was running, to how the driver has ended."""
        self._end(state, self._note(commits, _ENDINGS[state]))

    def child_name(self, round: int) -> str:
        """What the child run of a round is called."""
        return f"round {round}"

    def _end(self, state: Ending, note: str) -> None:
        experiment_id = self._experiment_id()
        runs = self._runs(experiment_id)
        parent_id = self._open_parent(experiment_id, runs.get(None), milliseconds(time.time()))
        for number, run in runs.items():
            if number is not None and not is_mirrored(run) and run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, state)
        self.client.set_tag(parent_id, NOTE_TAG, note)
        self.client.set_terminated(parent_id, state)

    def log_evaluation(
        self, metrics: Mapping[str, float], files: Sequence[Path], data: Sequence[DataSet], weight_version: str, checkpoint: str
    ) -> None:
        """Log a finished run of this name and id with these metrics, files and data sets, and the model; an existing one is overwritten."""
        from mlflow.entities import Metric

        experiment_id = self._experiment_id()
        run = self._runs(experiment_id).get(None)
        known = run.data.metrics if run else {}
        now_ms = milliseconds(time.time())
        run_id = self._open_parent(experiment_id, run, now_ms)
        model_id = log_evaluated_model(self.client, experiment_id, run_id, {"weight_version": weight_version, "checkpoint": checkpoint})
        found = [Metric(key, value, now_ms, 0, model_id=model_id) for key, value in metrics.items() if known.get(key) != value]
        for start in range(0, len(found), POINTS_PER_BATCH):
            self.client.log_batch(run_id, metrics=found[start : start + POINTS_PER_BATCH])
        self.client.log_inputs(run_id, dataset_inputs(data))
        for file in files:
            self.client.log_artifact(run_id, str(file))
        self.client.set_terminated(run_id, "FINISHED")

    @property
    def model_name(self) -> str:
        """Name of the registered model, valid for the registry."""
        return re.sub(r"[/:'\"]", "_", self.registered_model or f"vigc-{self.run_name}")

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client, with short time limits."""
        for name, value in CLIENT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return found.experiment_id
        location = None
        if self.tracking_uri.startswith("sqlite:///"):
            location = (Path(self.tracking_uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
        with landed_before():
            self.client.create_experiment(self.experiment, artifact_location=location, tags={KIND_TAG: KIND})
        created = self.client.get_experiment_by_name(self.experiment)
        assert created is not None
        return created.experiment_id

    def _runs(self, experiment_id: str) -> dict[int | None, Run]:
        """This loop's runs by round; the parent's key is None."""
        query = f"tags.`{RUN_TAG}` = '{self.run_id}'"
        page = self.client.search_runs([experiment_id], query)
        found = list(page)
        while page.token:
            page = self.client.search_runs([experiment_id], query, page_token=page.token)
            found += page
        runs: dict[int | None, Run] = {}
        for run in sorted(found, key=lambda run: (-len(run.data.metrics), run.info.run_id)):
            number = run.data.tags.get(ROUND_TAG)
            first = runs.setdefault(None if number is None else int(number), run)
            if first is not run:
                # MLflow's client retried a create that timed out, and both arrived: delete the emptier one.
                self.client.delete_run(run.info.run_id)
        return runs

    def _open_parent(self, experiment_id: str, parent: Run | None, start_ms: int) -> str:
        if parent is None:
            parent = self.client.create_run(experiment_id, start_ms, {RUN_TAG: self.run_id, **self.source}, self.run_name)
        elif parent.info.status != "RUNNING":
            self.client.update_run(parent.info.run_id, status="RUNNING")
        self._log_parameters(parent)
        return parent.info.run_id

    def _note(self, commits: Sequence[RoundCommit], now: str) -> str:
        ordered = sorted(commits, key=lambda commit: commit.round)
        return cut(run_note(self.run_id, self.uri, ordered, now), MAX_TAG_CHARACTERS)

    def _log_parameters(self, parent: Run) -> None:
        """Parameters cannot be changed in MLflow: the first run's values stay, a resumed run's changes go into a tag."""
        from mlflow.entities import Param

        wanted = {mlflow_key(key): cut(value, MAX_PARAMETER_CHARACTERS) for key, value in self.parameters.items()}
        known = parent.data.params
        missing = [Param(key, value) for key, value in wanted.items() if key not in known]
        for start in range(0, len(missing), PARAMETERS_PER_BATCH):
            self.client.log_batch(parent.info.run_id, params=missing[start : start + PARAMETERS_PER_BATCH])
        changed = {key: value for key, value in wanted.items() if known.get(key, value) != value}
        if changed:
            self.client.set_tag(parent.info.run_id, "vigc.changed_parameters", cut(json.dumps(changed), MAX_TAG_CHARACTERS))

    def _create_child(self, experiment_id: str, parent_id: str, round: int, started_ms: int) -> Run:
        tags = {"mlflow.parentRunId": parent_id, RUN_TAG: self.run_id, ROUND_TAG: str(round), "vigc.state": "running", **self.source}
        return self.client.create_run(experiment_id, started_ms, tags, self.child_name(round))

    def _fill_child(self, child_id: str, commit: RoundCommit, facts: RoundFacts, before: RoundCommit | None) -> None:
        texts = {"vigc.state": commit.state.value, "vigc.champion": commit.champion, NOTE_TAG: round_note(commit, facts, before)}
        if commit.decision is not None:
            texts["vigc.decision"] = commit.decision.reason
        if commit.reported:
            texts[FINDINGS_TAG] = "\n".join(finding.line for finding in commit.reported)
        parameters = {"round": str(commit.round), "written_with": commit.champion if before is None else before.writer}
        if commit.candidate is not None:
            parameters["candidate"] = commit.candidate
        parameters |= {key: value for key, value in self.parameters.items() if key.startswith(CHILD_PARAMETERS)}
        self._log_round(child_id, round_metrics(commit, facts), parameters, texts)
        if facts.data:
            self.client.log_inputs(child_id, dataset_inputs(facts.data))

    def _log_round(self, child_id: str, metrics: Sequence[Metric], parameters: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Log metrics, parameters and tags of a child run."""
        from mlflow.entities import Param, RunTag

        tags = [RunTag(name, cut(text, MAX_TAG_CHARACTERS)) for name, text in texts.items()]
        chosen = list({mlflow_key(key): value for key, value in parameters.items()}.items())[:PARAMETERS_PER_BATCH]
        known = self.client.get_run(child_id).data.params  # a parameter that exists cannot be changed, and a resumed run may have others
        params = [Param(key, cut(value, MAX_PARAMETER_CHARACTERS)) for key, value in chosen if key not in known]
        self.client.log_batch(child_id, metrics, params, tags)

    def _log_samples(self, child_id: str, samples: tuple[list[Record], list[Record]]) -> None:
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        tables = dict(zip(("accepted.json", "rejected.json"), samples, strict=True))
        for name, records in tables.items():
            # `log_table` would append to what an interrupted mirror left. This writes the same file and tag.
            self.client.log_text(child_id, json.dumps(sample_table(records)), name)
        self.client.set_tag(child_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([{"path": name, "type": "table"} for name in tables]))

    def _log_models(
        self, experiment_id: str, child_id: str, commit: RoundCommit, commits: Sequence[RoundCommit], champion_folder: ChampionFolder,
        facts: RoundFacts,
    ) -> None:  # fmt: skip
        """Log the model that the round has made, if any, and register it if it is the champion."""
        is_champion = _is_new_champion(commit, commits)
        if not is_champion and commit.candidate is None:
            return
        folder = champion_folder(commit) if is_champion else facts.candidate
        checkpoint = folder.resolve().as_uri() if isinstance(folder, Path) else masked(folder or UNAVAILABLE)
        version = commit.champion if is_champion or commit.candidate is None else commit.candidate
        identity = {RUN_TAG: self.run_id, "weight_version": version}
        tags = {**identity, "round": str(commit.round), "checkpoint": checkpoint, "outcome": commit.state.value}
        model_id = log_model(self.client, experiment_id, child_id, tags, commit.round)
        self.client.log_batch(child_id, metrics=model_metrics(commit, model_id, is_champion=is_champion))
        if is_champion:
            register(self.client, self.model_name, model_id, child_id, tags, identity)

    def _log_traces(self, experiment_id: str, child_id: str, commit: RoundCommit, traces: RoundTraces) -> None:
        """Write some records as traces, and note how many in a tag."""
        from mlflow.tracing.client import TracingClient

        log = TraceLog(TracingClient(self.tracking_uri), experiment_id, self.run_id, self.run_name)
        self.client.set_tag(child_id, TRACES_TAG, cut(log.write(child_id, commit, traces(commit)), MAX_TAG_CHARACTERS))

    def _complete_child(self, child_id: str, ended_at: float) -> None:
        self.client.set_terminated(child_id, "FINISHED", end_time=milliseconds(ended_at))
        self.client.set_tag(child_id, MIRRORED_TAG, "complete")


def is_mirrored(run: Run | None) -> bool:
    """Whether MLflow has all of a child run."""
    return run is not None and MIRRORED_TAG in run.data.tags


def _is_new_champion(commit: RoundCommit, commits: Sequence[RoundCommit]) -> bool:
    earlier = [other.champion for other in commits if other.round < commit.round]
    return not earlier or earlier[-1] != commit.champion


def _before(commit: RoundCommit, commits: Sequence[RoundCommit]) -> RoundCommit | None:
    return next((other for other in commits if other.round == commit.round - 1), None)


def cut(text: str, max_characters: int) -> str:
    """`text` within `max_characters`, with a note of what was cut."""
    if len(text) <= max_characters:
        return text
    note = f" ... (cut, {len(text)} characters)"
    return text[: max_characters - len(note)] + note
