"""The records of a run with their images, as the process beside the driver reads them for the gallery and for traces.

What opens the images of a run lies above this package. The driver names that function, and this process imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name

from actors.images import ImageSource
from loop.config.run_config import RunConfig, stored_config
from loop.errors import DamagedFileError, SchemaVersionError, UserError
from loop.gallery.samples import RoundSamples, read_samples
from loop.store.commits import RoundCommit
from loop.store.run_store import Store

RecordImages = Callable[[RunConfig], Callable[[int], ImageSource]]
"""Maps the config of a run to what opens the images that the records of a round are about; a function of a module."""


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Where records are, and how many of a round are shown; plain data, to be sent to another process."""

    run: str
    """The run folder, or its URI."""
    images: str
    """A `RecordImages`, as `module:name`."""
    gallery_samples: int
    """The most records of a round in the gallery; 0 for no gallery."""
    num_traces: int
    """The most records of a round that become traces; 0 for none."""


def record_source(store: Store, record_images: RecordImages, gallery_samples: int, num_traces: int = 0) -> RecordSource:
    """The source of a run's records."""
    return RecordSource(store.uri, f"{record_images.__module__}:{record_images.__qualname__}", gallery_samples, num_traces)


@dataclass
class RunRecords:
    """The records of a run. Run and images are opened when they are first needed."""

    source: RecordSource

    @cached_property
    def store(self) -> Store:
        return Store.open(self.source.run)

    @cached_property
    def images_of(self) -> Callable[[int], ImageSource]:
        record_images: RecordImages = resolve_name(self.source.images)
        return record_images(stored_config(self.store.read_run().config))

    def traced(self, commit: RoundCommit) -> RoundSamples:
        """The records of a round that become traces, with pictures. What is damaged, or missing from the config, costs traces and nothing
        else."""
        try:
            committed = self.store.read_commit(commit.round)
            return read_samples(self.store, committed, self.images_of(commit.round), self.source.num_traces)
        except (DamagedFileError, SchemaVersionError, UserError) as error:
            return RoundSamples([], 0, str(error))
