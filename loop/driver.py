"""The driver: opens the house, runs rounds until the stop policy says so, and mirrors what is committed."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import psutil
import torch
from rich.console import Console

from cluster.plan import plan_resources
from loop.assembly import build_images, build_labelled, build_policies, check_held_out, question_sets
from loop.commits import RoundCommit
from loop.config import RunConfig, stored_config
from loop.errors import UserError, printable
from loop.house import House, open_house, resource_request
from loop.interruption import interruptible
from loop.mirroring import mirrored
from loop.models import check_model
from loop.progress import RunProgress
from loop.retention import check_needed, prune
from loop.round import run_baseline, run_round
from loop.store import RunInfo, Store

log = logging.getLogger(__name__)

_REPLAY_S = 600.0
"""Bound on the mirror where nothing else is left to do: one call per request to MLflow, about fifteen a round."""


def check(config: RunConfig, *, has_begun: bool = False) -> list[str]:
    """Everything that can be found wrong with a config before an actor starts; of a run that has begun, what takes seconds and has been
    looked at already is left out.

    Returns:
        how the answers to each set of questions are scored, a line each.

    Raises:
        UserError: with one clear line.
    """
    build_policies(config)
    for spec in config.image_sets:
        build_images(spec)
    build_labelled(config.seed_data.data)
    sets = question_sets(config)
    if not has_begun:
        check_held_out(list(sets.values()))
        check_model(config.model_path, config.engine)
    if config.cluster.address is None:
        available = config.cluster.num_cpus or psutil.cpu_count() or 1
        try:
            plan_resources(available, torch.cuda.device_count(), resource_request(config))
        except ValueError as error:
            raise UserError(str(error)) from error
    return [f"{section}.{one.described}" for (section, _), one in sets.items()]


def start(config: RunConfig, run_dir: str, console: Console) -> Store:
    """A new run in `run_dir`, driven to its end. The store holds everything that came of it."""
    _say_metrics(console, check(config))
    info = RunInfo(run_id=f"{config.name}-{uuid.uuid4().hex[:12]}", config=config.model_dump(mode="json"))
    store = Store.create(run_dir, info)
    drive(config, store, console)
    return store


def resume(run_dir: str, console: Console) -> Store:
    """Continue an interrupted run from its last finished shard; a finished run only has its mirror completed."""
    store = Store.open(run_dir)
    config = stored_config(store.read_run().config)
    _say_metrics(console, check(config, has_begun=bool(store.commits())))
    drive(config, store, console)
    return store


def _say_metrics(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(f"metric of {printable(line)}", highlight=False, soft_wrap=True, markup=False)


def drive(config: RunConfig, store: Store, console: Console) -> None:
    """Rounds from where the store stands to where the stop policy ends them."""
    with interruptible(store.uri), store.locked() as locked, mirrored(config, locked) as mirror, RunProgress(console) as progress:
        policies = build_policies(config)
        commits = locked.commits()
        if commits and policies.stop.stop([commit.state for commit in commits[1:]], config.rounds):
            progress.note("the run is finished; nothing is left to do")
            if mirror:
                mirror.publish(commits)
                mirror.finish("FINISHED", _REPLAY_S)
            return
        check_needed(locked, commits)
        with open_house(config, locked, commits, progress) as house:
            for commit in rounds(house):
                if mirror:
                    mirror.publish(house.commits)
                prune(locked, house.commits, config.retention.keep_last, config.retention.keep_every)
                for finding in commit.findings:
                    progress.note(finding.line)
                log.info("round %d is committed: %s", commit.round, commit.state)


def rounds(house: House) -> Iterator[RoundCommit]:
    """The loop: a baseline, then one round after the other, each committed before it is yielded."""
    if not house.commits:
        house.progress.round(0, house.config.rounds)
        house.commits.append(run_baseline(house))
        yield house.commits[-1]
    while not (reason := house.policies.stop.stop([commit.state for commit in house.commits[1:]], house.config.rounds)):
        index = len(house.commits)
        house.progress.round(index, house.config.rounds)
        house.commits.append(run_round(house, index))
        yield house.commits[-1]
    house.progress.note(f"the loop ends: {reason}")
