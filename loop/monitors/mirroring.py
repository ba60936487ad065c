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
        found: tuple[list[Record], list[Record]] = [], []
        for record in records_of(store, commit):
            chosen = found[0] if record.accepted else found[1]
            if len(chosen) < config.tracking.num_samples:
                chosen.append(record)
            elif all(len(one) == config.tracking.num_samples for one in found):
                break
        return found

    def champion_folder(commit: RoundCommit) -> Path | None:
        try:
            return store.local_checkpoint(commit.champion_path)
        except PrunedCheckpointError:
            return None

    mirror = BackgroundMirror(mirror_of(config, store), samples, champion_folder, _run_folder(store) / "mlflow.log")
    try:
        yield mirror
    finally:
        raised = sys.exc_info()[0]
        mirror.finish("FINISHED" if raised is None else "KILLED" if raised is KeyboardInterrupt else "FAILED")


def _run_folder(store: Store) -> Path:
    """The run's local folder; for a run on an object store, the working folder, which then gets only MLflow's files."""
    return Path(store.uri) if "://" not in store.uri else Path.cwd()
