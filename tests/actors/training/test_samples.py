"""A training set in files teaches what the same samples in memory teach."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np

from actors.training.core import run_local
from actors.training.samples import StoredSamples, lengths_of, write_samples
from policies.records import TrainingSample
from tests.actors.training.helpers import Shapes, job_of, save_base


def samples(num: int) -> list[TrainingSample]:
    return [
        TrainingSample(f"image-{index}", tuple((f"q{index}-{turn}", "a" * turn) for turn in range(index % 3)), f"r{index}", "detail")
        for index in range(num)
    ]


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    distinct = samples(10_000)
    order = np.array([9999, 0, 4096, 4095, 0, 7])
    stored = write_samples(tmp_path / "set", iter(distinct), order)
    sent = pickle.dumps(stored)
    assert len(sent) < 1000, "pickling takes no data along"
    found = pickle.loads(sent)
    assert isinstance(found, StoredSamples)
    assert list(found) == found[:] == [distinct[index] for index in order]
    assert found[-1] == distinct[7]
    assert list(lengths_of(found)) == list(lengths_of(list(found)))
    assert write_samples(tmp_path / "again", iter(distinct), order).digest == stored.digest
    assert write_samples(tmp_path / "other", iter(distinct), order[::-1]).digest != stored.digest


def test_training_on_files_gives_the_weights_of_training_on_the_same_list(tmp_path: Path) -> None:
    job = job_of(save_base(tmp_path / "base"), tmp_path / "listed", num_steps=2, batch_size=4)
    stored = write_samples(tmp_path / "set", job.samples, np.arange(len(job.samples)))
    listed = run_local(job, Shapes())
    read = run_local(dataclasses.replace(job, output=tmp_path / "read", samples=stored), Shapes())
    assert (read.digest, read.losses) == (listed.digest, listed.losses)
