"""The monitors of a run: those that its config names, and MLflow as one of them."""

from __future__ import annotations

import getpass
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actors.training.job import TrainedStep
from loop.config.run_config import RunConfig
from loop.config.train_config import TrainConfig
from loop.credentials import masked
from loop.errors import PrunedCheckpointError, UserError, one_line
from loop.monitors.boards import RayMetrics, TensorBoard, WeightsAndBiases
from loop.monitors.json_lines import JsonLines
from loop.monitors.mirror.facts import facts_of
from loop.monitors.mirror.live import LivePoints, stage_points, step_points
from loop.monitors.mirror.records import RecordImages, record_source
from loop.monitors.mirror.training import TrainingMirror, finished_stages
from loop.monitors.monitor import Ending, Monitor, Monitors, RunFacts, StageProgress
from loop.monitors.tracking import Mirror, default_tracking_uri, flatten_parameters
from loop.monitors.tracking_process import BackgroundMirror, TrainingInBackground
from loop.store.commits import RoundCommit
from loop.store.run_store import Store
from loop.store.selected import records_of
from policies.records import Record
from policies.registry import Registry, UnknownPolicyError

log = logging.getLogger(__name__)

MLFLOW = "mlflow"
PLACE = "mlflow.json"
"""In the run folder: where MLflow has the run, as `vigc ui` looks it up."""
_GIT_TIMEOUT_S = 5.0

MONITORS: Registry[Monitor] = Registry("monitor", Monitor)
for _name, _factory in {"jsonl": JsonLines, "ray": RayMetrics, "tensorboard": TensorBoard, "wandb": WeightsAndBiases}.items():
    MONITORS.register(_name)(_factory)


class _Streamed:
    """What the monitors of MLflow have in common: live points go to files, everything else to a mirror in the background."""

    def __init__(self, points: LivePoints, mirror: BackgroundMirror) -> None:
        self._points = points
        self._mirror = mirror
        self._writes_points = True

    def round_started(self, round: int, num_rounds: int) -> None:
        self._stream(lambda: self._points.open(round, time.time()))

    def stage_progressed(self, stage: StageProgress) -> None:
        self._stream(lambda: self._points.add(stage.round, stage_points(stage, time.time())))

    def steps_trained(self, stage: StageProgress, steps: Sequence[TrainedStep]) -> None:
        self._stream(lambda: self._points.add(stage.round, step_points(stage, steps)))

    def _stream(self, write: Callable[[], None]) -> None:
        if not self._writes_points:
            return
        try:
            write()
        except OSError as error:  # a full disk costs the points of running rounds, and not what is mirrored of committed ones
            self._writes_points = False
            log.warning("cannot write the live points of MLflow: %s; MLflow gets each round after its commit", error)
        self._mirror.stream()

    def round_committed(self, commits: Sequence[RoundCommit]) -> None:
        self._mirror.log_commits(commits)

    def run_ended(self, ending: Ending, patience_s: float) -> None:
        self._mirror.finish(ending, patience_s)


class MlflowMonitor(_Streamed):
    """Implements `Monitor` for a run."""

    def __init__(self, config: RunConfig, store: Store, record_images: RecordImages) -> None:
        folder, own = run_folder(store), monitor_folder(store)
        points = LivePoints(own)
        mirror = BackgroundMirror(
            mirror_of(config, store), partial(_samples, store, config.tracking.num_samples), partial(_champion_folder, store),
            folder / "mlflow.log", facts=lambda commit: facts_of(config, store, commit, store.commits()[: commit.round + 1]),
            live=points, on_ids=partial(_note_place, own / PLACE, default_tracking_uri(folder, os.environ)),
            records=record_source(store, record_images, config.tracking.gallery_samples, config.tracking.num_traces),
        )  # fmt: skip
        super().__init__(points, mirror)


class TrainingMonitor(_Streamed):
    """Implements `Monitor` for `vigc train`, whose stages take the place of rounds: when one starts, those before it are finished."""

    def __init__(self, config: TrainConfig, run_id: str, out: Path) -> None:
        uri, points = default_tracking_uri(out, os.environ), LivePoints(out)
        mirror = TrainingMirror(
            uri, config.tracking.experiment, config.name, run_id, _parameters(config), None, source_tags(),
            str(out), [stage.name for stage in config.stages],
        )  # fmt: skip
        self._training = TrainingInBackground(
            mirror, partial(finished_stages, config, out), out / "mlflow.log", points, partial(_note_place, out / PLACE, uri)
        )
        super().__init__(points, self._training)

    def round_started(self, round: int, num_rounds: int) -> None:
        super().round_started(round, num_rounds)
        self._training.log_stages()


def mirror_of(config: RunConfig, store: Store) -> Mirror:
    """The MLflow side of a run."""
    uri = default_tracking_uri(run_folder(store), os.environ)
    return Mirror(
        uri, config.tracking.experiment, config.name, store.read_run().run_id, _parameters(config), config.tracking.registered_model,
        source_tags(), masked(store.uri),
    )  # fmt: skip


@contextmanager
def monitored(config: RunConfig, store: Store, record_images: RecordImages) -> Iterator[Monitors]:
    """The monitors of a run; the end of the block tells them whether it has finished, failed or was interrupted.

    Args:
        config: of the run.
        store: of the run.
        record_images: opens the images that the gallery shows.
    """

    def made(name: str) -> Monitor:
        monitor_folder(store).mkdir(exist_ok=True)
        if name == MLFLOW:
            return MlflowMonitor(config, store, record_images)
        return _built(name, RunFacts(store.read_run().run_id, config.name, store.uri, monitor_folder(store), _parameters(config)))

    with _told(config, made) as monitors:
        yield monitors


@contextmanager
def monitored_training(config: TrainConfig, run_id: str, out: Path) -> Iterator[Monitors]:
    """Like `monitored`, of a training in the folder `out`."""

    def made(name: str) -> Monitor:
        if name == MLFLOW:
            return TrainingMonitor(config, run_id, out)
        return _built(name, RunFacts(run_id, config.name, str(out), out, _parameters(config)))

    with _told(config, made) as monitors:
        yield monitors


@contextmanager
def _told(config: RunConfig | TrainConfig, made: Callable[[str], Monitor]) -> Iterator[Monitors]:
    found: dict[str, Monitor] = {}
    for name in config.monitors:
        if name == MLFLOW and not config.tracking.enabled:
            continue
        try:
            found[name] = made(name)
        except Exception as error:
            # The boundary of a monitor, which may be anybody's code: the run goes on without one that cannot be made.
            log.warning("monitor %s is left out: %s", name, masked(one_line(error)))
    monitors = Monitors(found)
    try:
        yield monitors
    finally:
        raised = sys.exc_info()[0]
        monitors.run_ended("FINISHED" if raised is None else "KILLED" if raised is KeyboardInterrupt else "FAILED")


def check_monitors(config: RunConfig | TrainConfig) -> None:
    """Raise `UserError` if a monitor that the config names does not exist or lacks a package."""
    for name in config.monitors:
        if name == MLFLOW:
            continue
        try:
            factory: Any = MONITORS.find(name)
        except UnknownPolicyError as error:
            raise UserError(f"monitors: {error}") from error
        package = getattr(factory, "package", None)
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"monitors: {name} needs the package {package}, which is not installed; run `pip install {package}`, or drop {name}"
            )


def source_tags() -> dict[str, str]:
    """Tags of MLflow that say who runs which code."""
    tags = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": " ".join(["vigc", *sys.argv[1:2]]),  # MLflow's UI shows what follows the last slash
        "vigc.command": masked(" ".join(["vigc", *sys.argv[1:]]))[:500],
        "mlflow.user": _user(),
    }
    with suppress(PackageNotFoundError):  # run from a checkout that is not installed
        tags["vigc.version"] = version("vigc-loop")
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _built(name: str, facts: RunFacts) -> Monitor:
    return MONITORS.build(name, {"facts": facts})


def _parameters(config: RunConfig | TrainConfig) -> dict[str, str]:
    return flatten_parameters(config.model_dump(mode="json"))


def sample_of(store: Store, commit: RoundCommit, num: int) -> tuple[list[Record], list[Record]]:
    """The first `num` accepted and rejected records of a round. Parts are read one by one, and only as many as needed."""
    found: dict[bool, list[Record]] = {True: [], False: []}
    num_accepted = commit.counts.get("accepted", 0)
    missing = {True: min(num, num_accepted), False: min(num, commit.counts.get("generated", 0) - num_accepted)}
    for record in records_of(store, commit) if any(missing.values()) else ():
        if missing[record.accepted]:
            found[record.accepted].append(record)
            missing[record.accepted] -= 1
        if not any(missing.values()):
            break
    return found[True], found[False]


def _samples(store: Store, num: int, commit: RoundCommit) -> tuple[list[Record], list[Record]]:
    return sample_of(store, commit, num)


def _champion_folder(store: Store, commit: RoundCommit) -> Path | str | None:
    try:
        folder = store.checkpoint(commit.champion_path)
    except PrunedCheckpointError:
        return None
    return folder if isinstance(folder, Path) else str(folder)


def _note_place(path: Path, tracking_uri: str, experiment_id: str, run_id: str) -> None:
    """Note where MLflow has the run. A tracking URI with a password is left out."""
    place: Mapping[str, str] = {"experiment_id": experiment_id, "run_id": run_id}
    if masked(tracking_uri) == tracking_uri:
        place = {"tracking_uri": tracking_uri, **place}
    text = json.dumps(place, indent=1) + "\n"
    with suppress(OSError):  # without it, `vigc ui` asks MLflow
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def run_folder(store: Store) -> Path:
    """The run's local folder; for a run on an object store, the working folder, which then gets MLflow's database and log."""
    return Path(store.uri) if "://" not in store.uri else Path.cwd()


def monitor_folder(store: Store) -> Path:
    """Where monitors write: the run's local folder; for a run on an object store, a subfolder of the working folder."""
    return run_folder(store) if "://" not in store.uri else Path.cwd() / store.read_run().run_id


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return str(os.getuid())


def _git_commit() -> str:
    """The commit of this code; empty if it is not in a checkout, or if there is no git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
