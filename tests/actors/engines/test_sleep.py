"""An engine that sleeps holds no weights and says nothing; a swap wakes it to what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from actors.engines import EngineSpec
from actors.engines.base import Request, Sampling, WeightUpdate
from actors.engines.errors import EngineError, SwapError, WeightMismatchError
from actors.engines.transformers import TransformersEngine
from actors.engines.vllm.options import VllmOptions
from actors.engines.weights import digest_of, manifest_of, num_bytes_of, read_checkpoint
from actors.generator import GeneratorOptions
from actors.shards import Shard
from actors.worker import EngineWorker
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from loop.sources.shapes.source import ShapesImages
from policies.correction.methods import SentenceBySentence
from tests.actors.engines.family_models import save_instructblip
from tests.world.untrained import save_untrained

REQUESTS = [
    Request(render(scene_of(image_id(1, index, 0.1))), prompt, image_key=f"{index}")
    for index, prompt in enumerate(("How many objects are there?", "What is at the center?", "Describe the image in detail."))
]
TEXTS = ["There is a red ring."] * len(REQUESTS)


def save_llava(folder: Path) -> Path:
    torch.manual_seed(0)
    save_untrained(folder)
    return folder


@pytest.fixture(scope="module", params=[save_llava, save_instructblip], ids=["llava", "instructblip"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save: Callable[[Path], Path] = request.param
    return save(tmp_path_factory.mktemp("model"))


def update(folder: Path, version: str = "r0", digest: str = "") -> WeightUpdate:
    tensors = read_checkpoint(folder)
    return WeightUpdate(version, digest or digest_of(tensors), manifest_of(tensors), checkpoint=folder)


@pytest.fixture
def engine(folder: Path) -> TransformersEngine:
    engine = TransformersEngine(folder)
    engine.swap(update(folder))
    return engine


def memory_of(model: torch.nn.Module) -> dict[StorageWeakRef, int]:
    """The memory of a model's parameters, referred to weakly, in bytes."""
    storages = {parameter.untyped_storage() for parameter in model.parameters()}
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


def test_sleep_gives_back_the_memory_of_all_parameters(engine: TransformersEngine, folder: Path) -> None:
    memory = memory_of(engine.model)
    assert sum(memory.values()) >= 0.9 * num_bytes_of(read_checkpoint(folder))
    engine.complete(REQUESTS, Sampling(2))

    engine.sleep()

    assert all(reference.expired() for reference in memory)
    assert sum(parameter.numel() for parameter in engine.model.parameters()) == 0


def test_a_sleeping_engine_says_nothing(engine: TransformersEngine) -> None:
    engine.sleep()
    engine.sleep()
    assert engine.weight_version == ""
    with pytest.raises(EngineError, match="is asleep; swap weights"):
        engine.complete(REQUESTS, Sampling(2))
    with pytest.raises(EngineError, match="is asleep; swap weights"):
        engine.score(REQUESTS, TEXTS)


def test_after_a_swap_it_says_what_it_said_before(engine: TransformersEngine, folder: Path) -> None:
    sampled = Sampling(12, temperature=1.0, seed=3)
    said = engine.complete(REQUESTS, sampled), engine.score(REQUESTS, TEXTS)
    for _ in range(2):
        engine.sleep()
        attested = engine.swap(update(folder))
        assert attested.digest == digest_of(read_checkpoint(folder))
        assert engine.weight_version == "r0"
        assert (engine.complete(REQUESTS, sampled), engine.score(REQUESTS, TEXTS)) == said


def test_weights_are_aligned_before_and_after_a_sleep(engine: TransformersEngine, folder: Path) -> None:
    for _ in range(2):
        addresses = [parameter.data_ptr() for parameter in engine.model.parameters() if parameter.numel()]
        assert not [address for address in addresses if address % 64], "the last bits of products depend on it on some CPUs"
        engine.sleep()
        engine.swap(update(folder))


def test_it_wakes_to_other_weights(engine: TransformersEngine, folder: Path) -> None:
    tensors = {name: one + 0.05 for name, one in read_checkpoint(folder).items()}
    other = WeightUpdate("r1", digest_of(tensors), manifest_of(tensors), tensors=tensors)
    awake = TransformersEngine(folder)
    awake.swap(other)
    engine.complete(REQUESTS, Sampling(2))  # so that features of the old weights are kept
    engine.sleep()
    assert engine.swap(other).digest == other.digest
    assert engine.complete(REQUESTS, Sampling(8)) == awake.complete(REQUESTS, Sampling(8))


def test_what_is_preloaded_may_be_woken_to(engine: TransformersEngine, folder: Path) -> None:
    engine.sleep()
    engine.preload(update(folder, "r1"))
    assert engine.swap(update(folder, "r1")).version == "r1"


def test_an_update_that_does_not_fit_leaves_it_asleep(engine: TransformersEngine, folder: Path) -> None:
    engine.sleep()
    with pytest.raises(WeightMismatchError, match="nothing given"):
        engine.swap(WeightUpdate("bad", "", {}, tensors={}))
    assert sum(parameter.numel() for parameter in engine.model.parameters()) == 0
    with pytest.raises(EngineError, match="is asleep"):
        engine.complete(REQUESTS, Sampling(2))
    engine.swap(update(folder))
    assert len(engine.complete(REQUESTS, Sampling(2))) == len(REQUESTS)


def test_where_there_is_no_memory_to_wake_in_the_swap_fails(
    engine: TransformersEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    engine.sleep()
    monkeypatch.setattr(torch.Tensor, "new_empty", no_room)
    with pytest.raises(SwapError, match="r0 were applied in part: out of memory"):
        engine.swap(update(folder))


# ---- the worker around it


def test_a_worker_whose_engine_sleeps_refuses_shards_until_a_swap(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    worker = EngineWorker(EngineSpec("transformers", str(folder)), GeneratorOptions(max_new_tokens=8), SentenceBySentence())
    source = ShapesImages(seed=1, min_shift=0.0, max_shift=0.1, num_images=1)
    shard = Shard(1, 0, 7, (), source)
    with pytest.raises(EngineError, match="has not been started"):
        worker.sleep()
    worker.start()
    worker.swap(update(folder))
    worker.write_records(shard)
    worker.sleep()
    assert worker.ping() == ""
    with pytest.raises(EngineError, match="has not completed a swap"):
        worker.write_records(shard)
    worker.swap(update(folder, "r1"))
    assert worker.write_records(shard)[1].num_rows == 0
    assert worker.ping() == "r1"


# ---- vLLM's options


def test_vllm_is_made_with_sleep_mode_on_gpus_alone() -> None:
    assert VllmOptions(device="cuda", sleeps=True).for_vllm()["enable_sleep_mode"] is True
    assert VllmOptions(device="cuda").for_vllm()["enable_sleep_mode"] is False
    with pytest.raises(ValueError, match="vLLM's CPU build has no sleep mode"):
        VllmOptions(sleeps=True)
