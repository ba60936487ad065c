"""What ranks and engines write and read behind a URI, from any node."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actors.engines.adapters.files import ADAPTER_FOLDER, Adapter, write_adapter
from actors.engines.errors import WeightMismatchError
from actors.engines.preloading import load_update
from actors.engines.vllm.sender import Sender
from actors.engines.weights import digest_of, manifest_of, manifest_of_checkpoint, read_checkpoint
from actors.folders import local_path, subfolder
from actors.training.checkpoint import write_average
from actors.training.core import run_local
from actors.training.job import EarlyStop, TrainingJob
from actors.training.samples import StoredSamples, write_samples
from actors.training.steps.remote import newest_whole
from cluster.fleet.weights import prepare
from loop import errors
from loop.store.fencing import acquire
from loop.store.run_store import Store
from loop.store.storage import objects
from loop.store.storage.remote import StoredFolder
from loop.store.training_files import (
    PAIRS,
    StoredOutput,
    StoredSteps,
    drop_steps,
    finish_checkpoint,
    samples_folder,
    shared_pairs,
    shared_samples,
    training_output,
    training_steps,
)
from loop.store.verifying import verify
from tests.actors.training.helpers import Shapes, interrupt, job_of, pairs_of, samples_of, save_base
from tests.loop.store.make_run import RUN, checkpoint, commit_of

NAME = "round-0001"


@pytest.fixture
def run(s3_uri: str) -> Iterator[Store]:
    with Store.create(s3_uri, RUN).locked() as store:
        yield store


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache of this node."""
    return tmp_path / "cache"


def places(store: Store) -> tuple[StoredOutput, StoredSteps]:
    """As another node has them."""
    output, steps = pickle.loads(pickle.dumps((training_output(store, NAME), training_steps(store, NAME))))
    return output, steps


def stored(store: Store, path: str, kept: tuple[str, ...] = ()) -> StoredFolder:
    folder = store.checkpoint(path, kept)
    assert isinstance(folder, StoredFolder)
    return folder


# ---- copies on a node


def test_of_several_processes_that_want_a_checkpoint_at_once_one_fetches_it(
    run: Store, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint(run, "base")
    shutil.rmtree(cache)
    caplog.set_level(logging.INFO, "werkzeug")
    barrier = Barrier(4)

    def fetch(_: int) -> Path:
        folder = pickle.loads(pickle.dumps(stored(run, "checkpoints/base")))
        barrier.wait(10)
        return folder.local()

    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(fetch, range(4)))
    assert len(copies) == 1
    assert len([one for one in caplog.messages if "GET" in one and "base/model.safetensors" in one]) == 1


def test_a_copy_that_was_altered_is_fetched_again(run: Store) -> None:
    checkpoint(run, "base")
    copy = run.local_checkpoint("checkpoints/base")
    (copy / "model.safetensors").write_bytes(b"wEights")
    assert (run.local_checkpoint("checkpoints/base") / "model.safetensors").read_bytes() == b"weights"


def test_copies_of_checkpoints_that_the_run_no_longer_needs_are_deleted(run: Store, cache: Path) -> None:
    for name in ("round-0000", "round-0001", "round-0002", "round-0002-control-x"):
        checkpoint(run, name)
    left_behind = run.storage.scratch("x").with_name(f"{socket.gethostname()}-{2**22 + 1}-dead")
    left_behind.mkdir()
    for name in ("round-0000", "round-0002"):
        with samples_folder(run, name) as folder:
            shared_samples(run, name, write_samples(folder, samples_of(1), np.zeros(1, dtype=int)))
    stored(run, "checkpoints/round-0002", ("round-0000", "round-0002")).local()
    assert {path.parents[1].name for path in cache.rglob("model.safetensors")} == {"round-0000", "round-0002", "round-0002-control-x"}
    assert [path.parents[2].name for path in cache.rglob("samples.arrow")] == ["round-0002.steps"]
    assert not left_behind.exists()


def test_an_average_is_made_of_copies_and_published_from_the_node_that_makes_it(run: Store, cache: Path) -> None:
    for name, value in (("older", 0.0), ("newer", 4.0)):
        made = run.checkpoint_dir(name)
        save_file({"a": torch.full((2,), value)}, made / "model.safetensors", {"format": "pt"})
        (made / "config.json").write_text(name)
        run.publish_checkpoint(made, name)
    shutil.rmtree(cache)
    output = training_output(run, NAME)
    digest = write_average(*pickle.loads(pickle.dumps((stored(run, "checkpoints/older"), stored(run, "checkpoints/newer"), 0.75, output))))
    receipt = finish_checkpoint(run, output, NAME)
    shutil.rmtree(cache)
    copy = run.local_checkpoint(receipt.path)
    assert digest == digest_of(read_checkpoint(copy)) == digest_of({"a": torch.ones(2)})
    assert [Path(file.path).name for file in receipt.files] == ["config.json", "model.safetensors"]
    assert (copy / "config.json").read_text() == "newer"


def test_a_part_of_a_checkpoint_is_copied_alone(run: Store, cache: Path) -> None:
    checkpoint(run, "base")
    shutil.rmtree(cache)
    folder = stored(run, "checkpoints/base")
    inside = subfolder(folder, "sub")
    assert inside is not None
    assert [path.name for path in local_path(inside).iterdir()] == ["config.json"]
    assert subfolder(folder, "adapter") is None
    assert list(cache.rglob("model.safetensors")) == []


def test_a_node_that_cannot_read_the_store_is_named(run: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(run, "base")
    folder = stored(run, "checkpoints/base")
    shutil.rmtree(cache)
    monkeypatch.setattr(objects, "_RETRIES", {"max_retries": 0})
    unreachable = objects.ObjectStorage("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http")
    with pytest.raises(errors.StoreError, match=rf"^cannot read s3:.* on {socket.gethostname()}; [^\n]*credentials are right[^\n]*$"):
        replace(folder, storage=unreachable).local()


@pytest.mark.parametrize("num_files", [1, 2])
def test_the_shapes_of_weights_are_read_without_a_copy(run: Store, cache: Path, num_files: int) -> None:
    weights = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}
    made = run.checkpoint_dir("base")
    if num_files == 1:
        save_file(weights, made / "model.safetensors", {"format": "pt"})
    else:
        for name, tensor in weights.items():
            save_file({name: tensor}, made / f"{name}.safetensors")
        (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in weights}}))
    run.publish_checkpoint(made, "base")
    shutil.rmtree(cache)
    folder = stored(run, "checkpoints/base")
    assert manifest_of_checkpoint(folder) == manifest_of(weights)
    assert list(cache.rglob("*.safetensors")) == []
    file = folder.files[-1].path
    run.storage.write(file, b"not tensors at all")
    with pytest.raises(WeightMismatchError, match=rf"cannot read .* s3://.*/{file}"):
        manifest_of_checkpoint(folder)


def test_every_transport_brings_a_stored_checkpoint_to_an_engine_and_copies_no_more_than_it_sends(run: Store, cache: Path) -> None:
    weights = {"a": torch.ones(3, 4)}
    adapter = Adapter(digest_of(weights), 1, 1, {"a": (torch.ones(1, 4), torch.ones(3, 1))})
    made = run.checkpoint_dir("base")
    save_file(weights, made / "model.safetensors")
    write_adapter(made / ADAPTER_FOLDER, adapter)
    run.publish_checkpoint(made, "base")
    shutil.rmtree(cache)
    folder, digest = stored(run, "checkpoints/base"), digest_of(weights)
    update = prepare(folder, "r1", "checkpoint", digest=digest)
    assert not list(cache.rglob("*.safetensors")), "the driver hands the folder on"
    assert prepare(folder, "r1", "adapter", digest=digest).digest == adapter.digest
    assert [path.name for path in cache.rglob("*.safetensors")] == ["adapter_model.safetensors"]
    assert digest_of(load_update(pickle.loads(pickle.dumps(update)))) == digest
    assert digest_of(load_update(prepare(folder, "r1", "object_store", digest=digest))) == digest
    assert digest_of(Sender(folder).fetch({"a"})) == digest


def test_training_samples_are_read_on_any_node(run: Store, cache: Path) -> None:
    samples, pairs = samples_of(5), pairs_of(2)
    with samples_folder(run, NAME) as folder:
        written = write_samples(folder / PAIRS, pairs, np.arange(4))
        shared = shared_samples(run, NAME, write_samples(folder, samples, np.arange(5)))
    shutil.rmtree(cache)
    elsewhere: list[StoredSamples] = pickle.loads(pickle.dumps([shared, shared_pairs(shared, written)]))
    assert [list(one) for one in elsewhere] == [samples, pairs]
    drop_steps(run, NAME)
    assert run.storage.sizes("checkpoints") == {}
    assert list(cache.rglob("samples.arrow")) == []


# ---- a second driver


def test_what_ranks_of_a_driver_publish_that_was_taken_over_is_refused(run: Store, tmp_path: Path) -> None:
    output, steps = places(run)
    late = tmp_path / "late"
    late.mkdir()
    (late / "model.safetensors").write_bytes(b"late")
    acquire(Store.open(run.uri), lease_s=0.0)
    for attempt in (
        lambda: output.publish(late),
        lambda: steps.publish(late, "step-00000001/rank-0", "job"),
        lambda: steps.remove("step-00000001"),
    ):
        with pytest.raises(errors.LockedError, match="was taken over"):
            attempt()
    assert run.storage.sizes("checkpoints") == {}


# ---- step checkpoints


@pytest.mark.parametrize(
    ("parts", "step"),
    [
        ([], 0),
        (["step-00000002/model", "step-00000002/rank-0", "step-00000002/rank-1"], 2),
        (["step-00000002/model", "step-00000002/rank-0", "step-00000002/rank-1", "step-00000004/model", "step-00000004/rank-1"], 2),
        (["step-00000004/rank-0", "step-00000004/rank-1", "best-00000004"], 0),
    ],
)
def test_a_step_counts_once_the_parts_of_all_ranks_are_there(parts: list[str], step: int) -> None:
    assert newest_whole(parts, world_size=2) == step


def finish(job: TrainingJob) -> tuple[list[int], tuple[Any, ...]]:
    steps: list[int] = []
    result = run_local(job, Shapes(), on_progress=lambda progress: steps.append(progress.step))
    return steps, (result.digest, result.losses, result.held_out_losses)


@pytest.mark.parametrize("hyper", [{"zero_stage": 0}, {"zero_stage": 2, "early_stop": EarlyStop(2, 2, 4)}], ids=["plain", "sharded"])
def test_a_lost_node_costs_the_steps_since_the_last_that_was_stored(run: Store, cache: Path, tmp_path: Path, hyper: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base")
    job = job_of(base, tmp_path / "undisturbed", num_steps=7, pixel_noise=0.05, **hyper)
    _, undisturbed = finish(job)
    output, steps = places(run)
    job = replace(job, output=output, steps_folder=steps, steps_between=2)
    interrupt(job, after=5)
    assert {part.partition("/")[0] for part in steps.parts()} - {"best-00000002"} <= {"step-00000004", "best-00000004"}
    shutil.rmtree(cache)
    done, resumed = finish(job)
    assert (done, resumed) == ([5, 6, 7], undisturbed)
    receipt = finish_checkpoint(run, output, NAME)
    assert digest_of(read_checkpoint(run.local_checkpoint(receipt.path))) == undisturbed[0]
    drop_steps(run, NAME)
    run.commit(commit_of(run, files=receipt.files))
    assert verify(run).ok
    assert [path for path in cache.rglob("*") if path.suffix == ".pt" or path.parent.name == "scratch"] == []


def test_a_damaged_part_is_as_good_as_none(run: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output, steps = places(run)
    job = replace(job_of(save_base(tmp_path / "base"), tmp_path / "x"), output=output, steps_folder=steps, steps_between=2)
    interrupt(job, after=3)
    run.storage.write(f"{steps.path}/step-00000002/rank-0/rank.pt", b"flipped")
    done, _ = finish(job)
    assert done == [1, 2, 3, 4]
    assert "step-00000002/rank-0 of" in caplog.text
