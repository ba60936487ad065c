"""Connect the MLflow mirror to a run: which samples it shows, where the champion is, and when it opens and closes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loop.config.run_config import RunConfig
from loop.errors import PrunedCheckpointError
from loop.monitors.tracking import Mirror, default_tracking_uri, flatten_parameters
from loop.monitors.tracking_process import BackgroundMirror
from loop.store.commits import RoundCommit
from loop.store.run_store import Store
from loop.store.selected import records_of
from policies.records import Record


def mirror_of(config: RunConfig, store: Store) -> Mirror:
    """The MLflow side of a run."""
    parameters = flatten_parameters(config.model_dump(mode="json"))
    uri = default_tracking_uri(_run_folder(store), os.environ)
    return Mirror(uri, config.tracking.experiment, config.name, store.read_run().run_id, parameters, config.tracking.registered_model)


@contextmanager
def mirrored(config: RunConfig, store: Store) -> Iterator[BackgroundMirror | None]:
    """A mirror beside the loop; None if tracking is disabled. The end of the block closes it as finished, failed or interrupted."""
    if not config.tracking.enabled:
        yield None
        return

    def samples(commit: RoundCommit) -> tuple[list[Record], list[Record]]:
        return sample_of(store, commit, config.tracking.num_samples)

    def champion_folder(commit: RoundCommit) -> Path | str | None:
        try:
            folder = store.checkpoint(commit.champion_path)
        except PrunedCheckpointError:
            return None
        return folder if isinstance(folder, Path) else str(folder)

    mirror = BackgroundMirror(mirror_of(config, store), samples, champion_folder, _run_folder(store) / "mlflow.log")
    try:
        yield mirror
    finally:
        raised = sys.exc_info()[0]
        mirror.finish("FINISHED" if raised is None else "KILLED" if raised is KeyboardInterrupt else "FAILED")


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


def _run_folder(store: Store) -> Path:
    """The run's local folder; for a run on an object store, the working folder, which then gets only MLflow's files."""
    return Path(store.uri) if "://" not in store.uri else Path.cwd()
