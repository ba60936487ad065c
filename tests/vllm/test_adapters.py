"""Adapters in the vLLM engine. An engine with adapters is an actor, as vLLM can be constructed once in a process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from actors.engines import EngineSpec
from actors.engines.base import Request, Sampling, WeightUpdate
from actors.engines.probe import make_probe
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import digest_of, read_checkpoint
from actors.training.core import run_local
from actors.training.job import Lora, TrainingJob
from cluster.fleet.weights import prepare
from loop.config.run_config import EMBEDDED_MODEL
from tests.actors.training.helpers import Shapes, job_of
from tests.vllm.worlds import requests

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

REQUESTS = requests(12)
LORA = Lora(rank=3, alpha=7, dropout=0.0, targets=("q_proj", "v_proj", "down_proj"))


class Server:
    """An engine in a process of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        from actors.engines import build_engine

        targets = {"adapter_rank": LORA.rank, "adapter_targets": LORA.targets}
        self._engine: Any = build_engine(EngineSpec("vllm", str(EMBEDDED_MODEL), {"cpu_kv_cache_gib": 0.25, **targets, **options}))

    def swap(self, update: WeightUpdate) -> str:
        return self._engine.swap(update).digest

    def version(self) -> str:
        return self._engine.weight_version

    def say(self, asked: list[Request]) -> tuple[list[tuple[int, ...]], list[float]]:
        said = self._engine.complete(asked, Sampling(24))
        return [one.token_ids for one in said], [one.logprob for one in self._engine.score(asked, [one.text for one in said])]

    def lose_part_of_adapters(self) -> None:
        """Has vLLM leave out a matrix of every adapter that it loads from now on."""
        load = self._engine._lora.LoRARequest

        def lossy(*arguments: Any, **options: Any) -> Any:
            from safetensors.torch import load_file, save_file

            file = Path(arguments[2]) / "adapter_model.safetensors"
            if file.exists():
                save_file({name: tensor for name, tensor in load_file(file).items() if "layers.1.self_attn.v_proj" not in name}, file)
            return load(*arguments, **options)

        self._engine._lora.LoRARequest = lossy


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    pytest.importorskip("vllm")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trainings of the embedded model's adapter, the second from the first."""
    folders = [tmp_path_factory.mktemp("trained") / name for name in ("first", "second")]
    run_local(training(folders[0]), Shapes())
    run_local(replace(training(folders[1]), adapter=folders[0] / "adapter"), Shapes())
    return folders


def training(output: Path) -> TrainingJob:
    frozen = ("vision_tower", "projector", "language_model")
    job = job_of(Path(EMBEDDED_MODEL), output, num_steps=6, learning_rate=0.02, warmup_share=0.0, frozen=frozen, lora=LORA)
    return replace(job, adapter_base=digest_of(read_checkpoint(Path(EMBEDDED_MODEL))))


def server(**options: Any) -> Any:
    return ray.remote(num_cpus=1)(Server).remote(options)


def expected(folder: Path) -> tuple[list[tuple[int, ...]], list[float]]:
    engine = TransformersEngine(folder)
    said = engine.complete(REQUESTS, Sampling(24))
    return [one.token_ids for one in said], [one.logprob for one in engine.score(REQUESTS, [one.text for one in said])]


def test_adapters_are_swapped_attested_and_refused(local_ray: None, adapted: list[Path]) -> None:
    served, seed = server(), Path(EMBEDDED_MODEL)
    updates = [prepare(folder, folder.name, "adapter") for folder in (seed, *adapted, seed)]
    first = updates[0]
    updates[0] = replace(first, probe=make_probe(seed, "float32", 1))
    said = []
    for update, folder in zip(updates, (seed, *adapted, seed), strict=True):
        assert ray.get(served.swap.remote(update), timeout=120) == update.digest
        tokens, logprobs = ray.get(served.say.remote(REQUESTS), timeout=60)
        said.append(tokens)
        wanted = expected(folder)
        assert tokens == wanted[0]
        assert logprobs == pytest.approx(wanted[1], abs=1e-3)
    assert said[0] == said[3]
    assert len({str(one) for one in said}) == 3, "adapters change what is said"

    adapter = updates[1].adapter
    assert adapter is not None
    foreign, large = replace(adapter, base_digest="0" * 64), replace(adapter, rank=9)
    for update, message in (
        (replace(first, adapter=foreign, digest=foreign.digest), "an adapter of a base with digest 0000"),
        (replace(first, adapter=large, digest=large.digest), "of rank 9, and the engine was started for ranks up to 3"),
        (prepare(seed, "whole", "checkpoint"), "the engine was started to swap adapters alone"),
    ):
        with pytest.raises(RayTaskError, match=message):
            ray.get(served.swap.remote(update), timeout=60)
        assert ray.get(served.version.remote(), timeout=30) == first.version

    ray.get(served.lose_part_of_adapters.remote(), timeout=30)
    with pytest.raises(RayTaskError, match=r"the served adapter differs from the one that was sent: .*layers.1.self_attn.v_proj"):
        ray.get(served.swap.remote(updates[2]), timeout=60)
    assert ray.get(served.version.remote(), timeout=30) == ""
    ray.kill(served)


def test_adapters_beside_packed_weights_are_attested_by_a_probe(local_ray: None, adapted: list[Path]) -> None:
    packed = server(attest="probe")
    update = replace(prepare(adapted[0], "new", "adapter"), probe=make_probe(adapted[0], "float32", 1))
    assert ray.get(packed.swap.remote(update), timeout=120) == update.digest
    assert ray.get(packed.say.remote(REQUESTS), timeout=60)[0] == expected(adapted[0])[0]
    assert update.adapter is not None
    wrong = {name: (down, up + torch.randn_like(up)) for name, (down, up) in update.adapter.matrices.items()}
    adapter = replace(update.adapter, matrices=wrong)
    with pytest.raises(RayTaskError, match="log-probabilities differ by"):
        ray.get(packed.swap.remote(replace(update, version="wrong", adapter=adapter, digest=adapter.digest)), timeout=60)
    ray.kill(packed)
