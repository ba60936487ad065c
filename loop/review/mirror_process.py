"""The process that mirrors a run to MLflow (`loop.monitors.tracking_process`), which also reads the records that become traces."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from actors.images import ImageSource
from loop.config.run_config import stored_config
from loop.errors import DamagedFileError, SchemaVersionError, UserError
from loop.gallery.samples import RoundSamples, read_samples
from loop.monitors.mirror.traces import RoundTraces
from loop.monitors.tracking_process import TraceOrder, serve_driver
from loop.setup.routing import record_images
from loop.store.commits import RoundCommit
from loop.store.run_store import Store


def traces_of(order: TraceOrder) -> RoundTraces:
    """Reads the sample of a round as `vigc report` does. What is damaged, or missing from the config, costs traces and nothing else."""

    @cache
    def opened() -> tuple[Store, Callable[[int], ImageSource]]:
        store = Store.open(order.uri)
        return store, record_images(stored_config(store.read_run().config))

    def read(commit: RoundCommit) -> RoundSamples:
        try:
            store, images_of = opened()
            return read_samples(store, store.read_commit(commit.round), images_of(commit.round), order.num)
        except (DamagedFileError, SchemaVersionError, UserError) as error:
            return RoundSamples([], 0, str(error))

    return read


if __name__ == "__main__":
    serve_driver(traces_of)
