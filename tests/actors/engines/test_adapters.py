"""Adapters in the transformers engine: what it serves, what it attests, and what it refuses. The trainer writes the adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.engines.adapters.files import ADAPTER_FOLDER, Adapter, read_adapter
from actors.engines.base import Request, Sampling, WeightUpdate
from actors.engines.errors import SwapError, WeightMismatchError
from actors.engines.transformers import TransformersEngine, served_tensors
from actors.engines.weights import digest_of, read_checkpoint
from actors.training.core import run_local
from actors.training.job import Lora
from cluster.fleet.weights import prepare
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from tests.actors.training.helpers import Shapes, job_of, save_base

FROZEN = ("vision_tower", "projector", "language_model")
REQUESTS = [Request(render(scene_of(image_id(1, index, 0.1))), "What is at the center?") for index in range(6)]
CONTINUATIONS = ["a red ring ."] * 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its adapter."""
    folder = tmp_path_factory.mktemp("trained") / "first"
    lora = Lora(rank=4, alpha=6, dropout=0.0)
    job = job_of(base, folder, num_steps=6, learning_rate=0.05, warmup_share=0.0, frozen=FROZEN, lora=lora)
    run_local(replace(job, adapter_base=digest_of(read_checkpoint(base))), Shapes())
    return folder


@pytest.fixture
def engine(base: Path) -> TransformersEngine:
    return TransformersEngine(base)


def scores(engine: TransformersEngine) -> list[float]:
    return [score.logprob for score in engine.score(REQUESTS, CONTINUATIONS)]


def test_an_adapter_serves_what_its_merged_checkpoint_serves_and_leaves_the_base_alone(
    engine: TransformersEngine, base: Path, adapted: Path
) -> None:
    alone, with_adapter = prepare(base, "base", "adapter"), prepare(adapted, "new", "adapter")
    engine.swap(alone)
    before, written = scores(engine), engine.complete(REQUESTS, Sampling(8))
    assert engine.swap(with_adapter).digest == with_adapter.digest != alone.digest
    merged = TransformersEngine(adapted)
    assert scores(engine) == pytest.approx(scores(merged), abs=1e-4)
    assert scores(engine) != pytest.approx(before, abs=1e-2)
    said = [[one.token_ids for one in each.complete(REQUESTS, Sampling(8))] for each in (engine, merged)]
    assert said[0] == said[1]
    assert digest_of(served_tensors(engine.model)) == alone.digest
    assert engine.swap(alone).digest == alone.digest
    assert scores(engine) == before
    assert engine.complete(REQUESTS, Sampling(8)) == written


def test_a_sleeping_engine_wakes_up_with_an_adapter(engine: TransformersEngine, adapted: Path) -> None:
    update = prepare(adapted, "new", "adapter")
    engine.swap(update)
    before = scores(engine)
    engine.sleep()
    assert engine.swap(update).digest == update.digest
    assert scores(engine) == before


def test_whole_weights_replace_an_adapter(engine: TransformersEngine, base: Path, adapted: Path) -> None:
    engine.swap(prepare(adapted, "new", "adapter"))
    engine.swap(prepare(adapted, "merged", "checkpoint"))
    assert scores(engine) == scores(TransformersEngine(adapted))
    with pytest.raises(WeightMismatchError, match=r"an adapter of a base with digest \w+, and the engine serves a base with digest"):
        engine.swap(prepare(adapted, "new", "adapter"))
    assert engine.weight_version == "merged"


def changed(update: WeightUpdate, change: Callable[[Adapter], Adapter]) -> WeightUpdate:
    assert update.adapter is not None
    adapter = change(update.adapter)
    return replace(update, adapter=adapter, digest=adapter.digest)


def renamed(adapter: Adapter) -> Adapter:
    return replace(adapter, matrices={f"{name}x": pair for name, pair in adapter.matrices.items()})


def halved(adapter: Adapter) -> Adapter:
    return replace(adapter, matrices={name: (down[:, ::2], up) for name, (down, up) in adapter.matrices.items()})


def in_bfloat16(adapter: Adapter) -> Adapter:
    return replace(adapter, matrices={name: (down.bfloat16(), up.bfloat16()) for name, (down, up) in adapter.matrices.items()})


def of_another_base(adapter: Adapter) -> Adapter:
    return replace(adapter, base_digest="0" * 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed, "k_projx, which is not a linear layer"),
        (halved, r"A for .*k_proj is float32\[4, 80\], and the served model needs float32\[4, 160\]"),
        (in_bfloat16, "bfloat16"),
        (of_another_base, "an adapter of a base with digest 0000"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    engine: TransformersEngine, adapted: Path, change: Callable[[Adapter], Adapter], said: str
) -> None:
    update = prepare(adapted, "new", "adapter")
    engine.swap(update)
    before = scores(engine)
    with pytest.raises(WeightMismatchError, match=said):
        engine.swap(changed(update, change))
    assert engine.weight_version == "new"
    assert scores(engine) == before


def test_damaged_matrices_are_found(engine: TransformersEngine, adapted: Path) -> None:
    update = prepare(adapted, "new", "adapter")
    assert update.adapter is not None
    matrices = {name: (down + 1e-6, up) for name, (down, up) in update.adapter.matrices.items()}
    with pytest.raises(SwapError, match="the served weights have digest"):
        engine.swap(replace(update, adapter=replace(update.adapter, matrices=matrices)))
    assert engine.weight_version == ""


def test_peft_reads_the_adapter_and_computes_the_same(base: Path, adapted: Path) -> None:
    from peft import PeftModel

    plain = TransformersEngine(base)
    PeftModel.from_pretrained(plain.model, str(adapted / ADAPTER_FOLDER))
    assert scores(plain) == pytest.approx(scores(TransformersEngine(adapted)), abs=1e-4)


def test_a_damaged_adapter_file_is_refused(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightMismatchError, match="cannot read the adapter in"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(WeightMismatchError, match="cannot read the adapter in"):
        read_adapter(tmp_path)


def test_the_digest_is_of_base_scale_and_matrices() -> None:
    adapter = Adapter("base", 2, 4, {"q": (torch.ones(2, 3), torch.ones(5, 2))})
    others = [
        replace(adapter, base_digest="other"), replace(adapter, alpha=2),
        replace(adapter, matrices={"q": (torch.ones(2, 3), torch.zeros(5, 2))}), replace(adapter, matrices={}),
    ]  # fmt: skip
    assert len({adapter.digest, *(other.digest for other in others)}) == 5
    assert Adapter("base").digest == "base"
