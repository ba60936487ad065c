"""A small finished run that the mirror's process has written to a real MLflow on a SQLite file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.tracing.client import TracingClient
from mlflow.tracking import MlflowClient

from loop.monitors.mirror.records import RecordSource, record_source
from loop.monitors.mirroring import mirror_of
from loop.monitors.tracking import Mirror
from loop.monitors.tracking_process import BackgroundMirror
from loop.setup.routing import record_images
from loop.store.commits import RoundCommit
from loop.store.run_store import Store
from policies.records import Record
from tests.loop.gallery.made_run import config_of, write_run

NUM = 12
"""Traces of a round."""


@dataclass(frozen=True)
class Tracked:
    """A run that the mirror's process has written to MLflow."""

    store: Store
    mirror: Mirror

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.mirror.tracking_uri, self.mirror.tracking_uri)

    @property
    def experiment_id(self) -> str:
        ids = self.mirror.ids()
        assert ids is not None
        return ids[0]

    def traces(self) -> list[Trace]:
        return list(self.client.search_traces(locations=[self.experiment_id], max_results=100))

    def in_queue(self) -> dict[str, str]:
        """Status of each item of the review queue, by trace."""
        store = TracingClient(self.mirror.tracking_uri).store
        (queue,) = store.list_review_queues(self.experiment_id)
        return {one.item_id: str(one.status) for one in store.list_review_queue_items(queue.queue_id)}

    def say(self, trace_id: str, value: str, person: str = "ada") -> None:
        """A label, as MLflow's UI writes it."""
        source = AssessmentSource("HUMAN", person)
        TracingClient(self.mirror.tracking_uri).log_assessment(trace_id, Feedback(name="review", value=value, source=source))


def nothing(commit: RoundCommit) -> tuple[list[Record], list[Record]]:
    return [], []


def source_of(store: Store) -> RecordSource:
    return record_source(store, record_images, 0, NUM)


def tracked_run(folder: Path, empty_database: Path) -> Tracked:
    """A finished run of two rounds in `folder`, and MLflow's tables beside it."""
    shutil.copy(empty_database, folder / "mlflow.db")
    store = write_run(folder / "run", config_of())
    mirror = mirror_of(config_of(), store)
    background = BackgroundMirror(mirror, nothing, lambda _: None, folder / "mlflow.log", records=source_of(store))
    background.log_commits(store.commits())
    assert background.finish("FINISHED", 120), (folder / "mlflow.log").read_text()[-2000:]
    return Tracked(store, mirror)
