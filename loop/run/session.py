"""A session: a run with its models and its actors, while a driver works on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loop.config.run_config import RunConfig
from loop.monitors.progress import RunProgress
from loop.run.contents import Run
from loop.run.models import Models
from loop.run.workers import Workers, open_workers
from loop.setup.assembly import build_policies
from loop.setup.data import RunData
from loop.store.commits import Finding, RoundCommit
from loop.store.run_store import Store


@dataclass
class Session:
    """Everything a round needs; each stage takes only the parts it uses."""

    run: Run
    models: Models
    workers: Workers


@contextmanager
def open_session(
    config: RunConfig, data: RunData, store: Store, commits: list[RoundCommit], progress: RunProgress, findings: Sequence[Finding] = ()
) -> Iterator[Session]:
    """Open a session of the run in `store`, whose commits so far are `commits`. Its actors end with the block."""
    run = Run(config, build_policies(config), store, store.read_run().run_id, progress, data, commits, findings)
    models = Models(store, commits)
    if not commits:
        with progress.stage("copy the model into the run"):
            models.adopt(config.model_path)
    with open_workers(run) as workers:
        yield Session(run, models, workers)
