"""A swap that does not fit touches nothing; one that fails half way never serves; what cannot be read back is asked."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayTaskError
from transformers import CLIPVisionConfig, LlamaConfig

from actors.engines import EngineSpec
from actors.engines.base import Request, Sampling, WeightUpdate
from actors.engines.errors import SwapError, WeightMismatchError
from actors.engines.preloading import verify, verify_manifest
from actors.engines.probe import make_probe
from actors.engines.shared_memory import FOLDER
from actors.engines.transformers import TransformersEngine
from actors.engines.vllm.engine import VllmEngine
from cluster.fleet.weights import prepare
from loop.config.run_config import EMBEDDED_MODEL
from tests.cluster.workers import wait_while
from tests.vllm.worlds import Weights, changed, checkpoint_update, requests, seed_weights, update_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

REQUESTS = requests(12)


def without_a_name(weights: Weights) -> WeightUpdate:
    return update_of({name: tensor for name, tensor in weights.items() if "layers.1.self_attn.k_proj" not in name}, "bad")


def with_a_wrong_shape(weights: Weights) -> WeightUpdate:
    return update_of({**weights, "language_model.model.norm.weight": weights["language_model.model.norm.weight"][:-1].clone()}, "bad")


def with_another_dtype(weights: Weights) -> WeightUpdate:
    return update_of({name: tensor.bfloat16() for name, tensor in weights.items()}, "bad")


def with_a_wrong_digest(weights: Weights) -> WeightUpdate:
    return update_of(weights, "bad", digest="0" * 64)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (without_a_name, r"k_proj.weight: nothing given, float32\[160, 160\] served"),
        (with_a_wrong_shape, r"norm.weight: float32\[159\] given, float32\[160\] served"),
        (with_another_dtype, "bfloat16.* given, float32"),
        (with_a_wrong_digest, "has digest .*; 0000"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_and_touches_nothing(engine: VllmEngine, bad: Any, said: str) -> None:
    before = [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))]
    with pytest.raises(WeightMismatchError, match=said):
        engine.swap(bad(changed(seed_weights(), 1)))
    assert engine.weight_version == "seed"
    assert [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))] == before


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions of the updates whose names, shapes and dtypes the engine has compared itself, in order."""
    versions: list[str] = []

    def told(check: Any) -> Any:
        def check_and_tell(update: WeightUpdate, *arguments: Any) -> None:
            versions.append(update.version)
            check(update, *arguments)

        return check_and_tell

    for check in (verify, verify_manifest):
        monkeypatch.setattr(f"actors.engines.vllm.engine.{check.__name__}", told(check))
    return versions


def test_a_preloaded_swap_serves_what_a_whole_swap_serves_and_verifies_before(engine: VllmEngine, verified: list[str]) -> None:
    old, new = [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))], update_of(changed(seed_weights(), 1), "new")
    engine.swap(new)
    expected = [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))]
    engine.swap(update_of(seed_weights(), "seed"))
    verified.clear()
    preloading = Thread(target=engine.preload, args=(new,))
    preloading.start()
    assert [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))] == old
    preloading.join()
    assert verified == ["new"]
    assert engine.swap(new).digest == new.digest
    assert [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))] == expected != old
    assert verified == ["new"], "not again within the swap"


def test_what_is_wrong_with_a_preloaded_update_is_raised_by_its_swap(engine: VllmEngine, verified: list[str]) -> None:
    before = [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))]
    bad = with_a_wrong_digest(changed(seed_weights(), 1))
    engine.preload(bad)
    with pytest.raises(WeightMismatchError, match="has digest"):
        engine.swap(bad)
    assert verified == ["bad"]
    assert engine.weight_version == "seed"
    assert [one.token_ids for one in engine.complete(REQUESTS, Sampling(48))] == before


@pytest.mark.parametrize("step", ["_drain", "_apply", "_reset_caches", "_attest"])
def test_a_swap_that_fails_on_its_way_serves_neither_version(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(engine, step, fail)
    with pytest.raises(SwapError, match="new could not be applied: the device is lost"):
        engine.swap(update_of(changed(seed_weights(), 1), "new"))
    assert engine.weight_version == ""


def test_served_bytes_that_are_not_the_ones_sent_are_found(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that leaves one merged member out, as if half a group had been sent."""
    load = engine._rpc

    def lossy(method: str, *arguments: Any) -> list[Any]:
        if method == "load_in_place":
            kept = {name: tensor for name, tensor in arguments[0].items() if "layers.2.self_attn.v_proj" not in name}
            return load(method, kept)
        return load(method, *arguments)

    monkeypatch.setattr(engine, "_rpc", lossy)
    with pytest.raises(SwapError, match=r"layers.2.self_attn.v_proj.* differs from the weights that were sent"):
        engine.swap(update_of(changed(seed_weights(), 1), "new"))


def test_requests_left_behind_end_before_a_swap(engine: VllmEngine) -> None:
    llm = engine.llm
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": engine._prompter.token_ids("what is at the center ?")}
    llm.llm_engine.add_request("left behind", prompt, SamplingParams(max_tokens=20, ignore_eos=True))
    assert llm.llm_engine.has_unfinished_requests()
    engine.swap(update_of(changed(seed_weights(), 2), "next"))
    assert not llm.llm_engine.has_unfinished_requests()
    assert engine.weight_version == "next"


# ---- engines that cannot read back what they serve: each is an actor, as vLLM can be constructed once in a process


class Server:
    """An engine in a process of its own."""

    def __init__(self, folder: str, options: dict[str, Any]) -> None:
        from actors.engines import build_engine

        self._engine: Any = build_engine(EngineSpec("vllm", folder, {"cpu_kv_cache_gib": 0.25, **options}))

    def swap(self, update: WeightUpdate) -> str:
        return self._engine.swap(update).digest

    def state(self) -> tuple[str, bool]:
        """The served version, and whether the engine attests by digest; else it needs an update with a probe."""
        return self._engine.weight_version, self._engine._places is not None

    def say(self, asked: list[Request]) -> list[tuple[tuple[int, ...], float]]:
        return [(one.token_ids, one.logprob) for one in self._engine.complete(asked, Sampling(24))]

    def processes(self) -> list[int]:
        return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


@pytest.fixture(scope="module")
def local_ray() -> Any:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_of_a_stream_the_offer_is_checked_ahead(engine: VllmEngine, verified: list[str], local_ray: None) -> None:
    update = prepare(Path(EMBEDDED_MODEL), "streamed", "native")
    engine.preload(update)
    assert verified == ["streamed"]
    assert engine.swap(update).digest == update.digest
    assert verified == ["streamed"]


def server(folder: Path, **options: Any) -> Any:
    return ray.remote(num_cpus=1)(Server).remote(str(folder), options)


def expected(folder: Path, asked: list[Request]) -> list[tuple[int, ...]]:
    return [one.token_ids for one in TransformersEngine(folder).complete(asked, Sampling(24))]


def test_packed_weights_are_attested_by_a_probe(local_ray: None) -> None:
    pytest.importorskip("vllm")
    packed = server(EMBEDDED_MODEL, attest="probe")
    right, wrong = make_probe(EMBEDDED_MODEL, "float32", 1), changed(seed_weights(), 3)
    assert ray.get(packed.swap.remote(checkpoint_update(EMBEDDED_MODEL, "seed", right)), timeout=120)
    assert ray.get(packed.state.remote(), timeout=30) == ("seed", False)
    said = ray.get(packed.say.remote(REQUESTS), timeout=60)
    assert [one[0] for one in said] == expected(EMBEDDED_MODEL, REQUESTS)
    for update, message in (
        (update_of(wrong, "new", probe=right), "at the end of the prompt, log-probabilities differ by"),
        (update_of(wrong, "new"), "has no probe"),
    ):
        with pytest.raises(RayTaskError, match=message):
            ray.get(packed.swap.remote(update), timeout=60)
        assert ray.get(packed.state.remote(), timeout=30)[0] == ""
    ray.kill(packed)


def segments() -> set[str]:
    """Named shared memory that vLLM has made."""
    return {path.name for path in FOLDER.iterdir() if path.name.startswith(("psm_", "vllm"))}


def test_a_tensor_parallel_engine_says_the_same_and_ends_with_its_actor(local_ray: None, tmp_path: Path) -> None:
    """Two processes share the weights; they are gone when the actor is killed, and so is their shared memory."""
    pytest.importorskip("vllm")
    before = segments()
    folder = save_two_headed(tmp_path / "model")
    sharded = server(folder, tensor_parallel_size=2)
    update = checkpoint_update(folder, "first", make_probe(folder, "float32", 1))
    assert ray.get(sharded.swap.remote(update), timeout=200) == update.digest
    assert [one[0] for one in ray.get(sharded.say.remote(REQUESTS), timeout=60)] == expected(folder, REQUESTS)
    processes = [psutil.Process(pid) for pid in ray.get(sharded.processes.remote(), timeout=30)]
    assert len(processes) >= 3
    assert segments() > before
    processes[0].kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    wait_while(lambda: segments() - before)


def save_two_headed(folder: Path) -> Path:
    """An untrained LLaVA whose attention heads two processes can share, with the embedded world's processor."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from loop.models.seed.model import build_processor

    torch.manual_seed(0)
    processor = build_processor()
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=16, projection_dim=32,
        initializer_range=0.3,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(processor.tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=0, bos_token_id=2, eos_token_id=3, initializer_range=0.3,
    )  # fmt: skip
    image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token_id, vision_feature_layer=-1, image_seq_length=9)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
