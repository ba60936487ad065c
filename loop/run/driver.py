"""The driver: opens the session, runs rounds until the stop policy ends the run, and tells monitors of each commit."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from rich.console import Console

from loop.config.run_config import RunConfig, stored_config
from loop.errors import DamagedFileError, RunExistsError, UserError
from loop.interruption import interruptible
from loop.models.checks import check_trained_in_adapter, model_check
from loop.monitors.mirroring import MLFLOW, check_monitors, monitored
from loop.monitors.progress import RunProgress
from loop.monitors.run_log import logged
from loop.monitors.tracking import flatten_parameters
from loop.run.retention import check_needed, prune
from loop.setup.assembly import build_policies, check_held_out
from loop.setup.copies import shared_content
from loop.setup.data import RunData, build_data
from loop.setup.inert import no_effect, slow_model
from loop.setup.overlaps import overlaps
from loop.setup.planning import available_nodes, planned
from loop.setup.routing import record_images
from loop.store.commits import Finding, RoundCommit
from loop.store.run_store import RunInfo, Store
from loop.store.storage import open_storage

if TYPE_CHECKING:
    from loop.run.session import Session

log = logging.getLogger(__name__)

_REPLAY_S = 600.0
"""Time limit for monitors when the run is already finished: about fifteen MLflow requests per round."""


@dataclass(frozen=True)
class Checked:
    """The result of checking a config before any actor starts."""

    data: RunData
    """The sources that were checked, for the run."""
    metrics: list[str]
    """How each set of questions is scored, one line per set."""
    findings: list[Finding]
    """Settings that work but are probably not intended; empty for a run that has started, which already reported them."""


def check(config: RunConfig, *, has_begun: bool = False) -> Checked:
    """Check everything about a config that can be checked before an actor starts. For a run that has started, skip the slow checks that
    it has already passed.

    Raises:
        UserError: the config cannot work; a one-line message.
    """
    if has_begun:
        return Checked(*_data_of(config), findings=[])
    with _model_check(config) as report:
        data, metrics = _data_of(config)
        return _checked(config, data, metrics, report)


def _model_check(config: RunConfig) -> AbstractContextManager[Callable[[], str]]:
    return model_check(config.model_path, config.engine, {"training": config.training.hyperparameters(num_samples=1)})


def _data_of(config: RunConfig) -> tuple[RunData, list[str]]:
    """The data of a run, and how each set of questions is scored; checks policies, monitors and resources first."""
    build_policies(config)
    check_monitors(config)
    if not config.cluster.node_wait_s:
        available = available_nodes(config.cluster)
        planned(config, available.nodes, is_cluster=available.is_cluster)
    data = build_data(config)
    return data, [f"{section}.{one.described}" for (section, _), one in data.questions.items()]


def _checked(config: RunConfig, data: RunData, metrics: list[str], report: Callable[[], str]) -> Checked:
    """Check the data, and wait for the `report` of the model's check."""
    sets = data.questions
    check_held_out(list(sets.values()))
    shared = [*overlaps(config, data.seed, sets, data.unlabelled), *shared_content(data)]
    slow = report()
    if config.transport == "adapter":
        check_trained_in_adapter(config.model_path, config.training.frozen)
    return Checked(data, metrics, [*no_effect(config, build_policies(config)), *slow_model(slow), *shared])


def start(config: RunConfig, run_dir: str, console: Console, *, resume_existing: bool = False) -> Store:
    """Run the loop in `run_dir` to its end and return its store. Ray starts while the model is checked.

    Args:
        resume_existing: resume an existing run with the same config; otherwise `run_dir` must not hold a run.

    Raises:
        RunExistsError: `run_dir` holds a run and `resume_existing` is False.
        UserError: the existing run has another config, or this config cannot work.
    """
    if (there := Store.find(run_dir)) is not None:
        if not resume_existing:
            raise RunExistsError(run_dir)
        check_same(config, there)
        return resume(run_dir, console)
    with interruptible(run_dir, "start the run again with --resume"), ExitStack() as connection:
        checked = _check_beside_ray(config, run_dir, connection)
        info = RunInfo(run_id=f"{config.name}-{uuid.uuid4().hex[:12]}", config=config.model_dump(mode="json"))
        store = Store.create(run_dir, info)
        drive(config, store, console, checked, connection)
    return store


def _check_beside_ray(config: RunConfig, run_dir: str, connection: ExitStack) -> Checked:
    """Check a config, and connect to Ray in `connection` while a process of its own checks the model. What takes no time is checked
    before Ray starts."""
    with _model_check(config) as report, RunProgress(Console(stderr=True)) as progress:  # forked before there are threads
        with progress.stage("check config and data"):
            data, metrics = _data_of(config)
        from loop.run.connection import connected_for  # Ray takes a while to import

        threading.Thread(target=import_module, args=["torch"]).start()  # what the session needs next; this process waits for Ray meanwhile
        with progress.stage("connect to Ray"):
            connection.enter_context(connected_for(config.cluster, open_storage(run_dir).uri))
        with progress.stage("check model and questions"):
            return _checked(config, data, metrics, report)


def resume(run_dir: str, console: Console) -> Store:
    """Continue an interrupted run from its last finished shard; for a finished run, only complete its mirror."""
    store = Store.open(run_dir)
    config = stored_config(store.read_run().config)
    drive(config, store, console)
    return store


def check_same(config: RunConfig, store: Store) -> None:
    """Raise `UserError` unless the run has this config; the message lists every differing key with both values."""
    there = flatten_parameters(stored_config(store.read_run().config).model_dump(mode="json"))
    here = flatten_parameters(config.model_dump(mode="json"))
    differing = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if differing:
        lines = [f"{key}: run: {there.get(key, 'absent')}, given: {here.get(key, 'absent')}" for key in differing]
        raise UserError(
            f"{store.uri} holds a run with another config; use the same config, resume the run with `vigc resume {store.uri}`, or "
            "choose another --run-dir\n" + "\n".join(lines)
        )


def drive(config: RunConfig, store: Store, console: Console, checked: Checked | None = None, connection: ExitStack | None = None) -> None:
    """Run rounds from the state of the store until the stop policy ends the run.

    Args:
        checked: the result of `check`; None calls it.
        connection: an open connection to Ray, which is closed before the run is released; None makes one if there is work to do.
    """
    from loop.run.session import open_session  # imports torch and Ray, which takes seconds: `start` checks the model meanwhile

    with (
        interruptible(store.uri),
        store.locked() as locked,
        logged(locked.storage) as log_of_run,
        monitored(config, locked, record_images) as monitors,
        log_of_run.ending(),
        RunProgress(console, listener=log_of_run, monitors=monitors) as progress,
        connection or ExitStack(),
    ):
        commits = locked.commits()
        if commits:
            monitors.round_committed(commits)  # they may have missed some
        if checked is None:
            with progress.stage("check config and data"):
                checked = check(config, has_begun=bool(commits))
        in_mlflow = f"`vigc ui {store.uri}` (MLflow) or " if config.tracking.enabled and MLFLOW in config.monitors else ""
        progress.note(f"watch it from another terminal with {in_mlflow}`vigc watch {store.uri}`")
        for line in checked.metrics:
            progress.note(f"metric of {line}")
        policies = build_policies(config)
        if commits and policies.stop.stop([commit.state for commit in commits[1:]], config.rounds):
            progress.note("the run is finished; nothing to do")
            monitors.run_ended("FINISHED", _REPLAY_S)
            return
        check_needed(locked, commits)
        for finding in checked.findings:
            progress.note(finding.line)
        with open_session(config, checked.data, locked, commits, progress, checked.findings) as session:
            for commit in rounds(session):
                monitors.round_committed(commits)
                prune(locked, commits, config.retention.keep_last, config.retention.keep_every, config.overlap)
                for finding in commit.reported:
                    if finding not in checked.findings:  # findings about the config were already reported
                        progress.note(finding.line)
                log.info("round %d is committed: %s", commit.round, commit.state)


def rounds(session: Session) -> Iterator[RoundCommit]:
    """The loop: a baseline, then one round after another, each committed before it is yielded."""
    from loop.run.round import run_baseline, run_round

    run = session.run
    if not run.commits:
        run.progress.round(0, run.config.rounds)
        run.commits.append(run_baseline(session))
        yield run.commits[-1]
    while not (reason := run.policies.stop.stop([commit.state for commit in run.commits[1:]], run.config.rounds)):
        index = len(run.commits)
        run.progress.round(index, run.config.rounds)
        with _made_again(index):
            run.commits.append(run_round(session, index))
        session.workers.fleet.refill_restarts()
        yield run.commits[-1]
    run.progress.note(f"the loop ends: {reason}")


@contextmanager
def _made_again(index: int) -> Iterator[None]:
    """Say of a damaged file of round `index`, which is not committed, that `vigc resume` makes it again."""
    try:
        yield
    except DamagedFileError as error:
        if not error.path.startswith(f"rounds/{index:04d}/"):
            raise
        remedy = f"round {index} is not committed: check the disk, then continue with `vigc resume`, which makes the file again"
        raise DamagedFileError(error.path, error.expected, error.found, remedy) from error
