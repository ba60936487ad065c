"""The native transport into vLLM engines: weights go from a sender to the workers, and nothing else is served than was prepared."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayTaskError
from safetensors.torch import save_file

from actors.engines import EngineSpec, build_engine
from actors.engines.base import Attestation, Engine, Sampling, WeightUpdate
from actors.engines.errors import SwapError, WeightMismatchError
from actors.engines.probe import make_probe
from actors.engines.stream import WeightStream
from actors.engines.transformers import TransformersEngine
from actors.engines.vllm.sender import Sender
from actors.engines.weights import num_bytes_in, read_checkpoint
from cluster.fleet.weights import prepare
from cluster.resources.connect import connected
from loop.config.run_config import EMBEDDED_MODEL
from tests.vllm.worlds import changed, requests

pytest.importorskip("vllm", reason="needs vLLM: make install-vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

SEED = Path(EMBEDDED_MODEL)
SWAP_S = 60.0
NORM = "language_model.model.norm.weight"


class Host:
    """A process with one engine, as `actors.worker` has, and no more."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        self._engine: Engine = build_engine(EngineSpec(kind, str(SEED), options))

    def swap(self, update: WeightUpdate) -> Attestation:
        return self._engine.swap(update)

    def weight_version(self) -> str:
        return self._engine.weight_version

    def say(self) -> list[tuple[int, ...]]:
        return [one.token_ids for one in self._engine.complete(requests(16), Sampling(48))]


class DiesMidway(dict[str, torch.Tensor]):
    """Tensors whose process is killed when some of them have been sent."""

    def values(self) -> Any:
        for number, tensor in enumerate(super().values()):
            if number == len(self) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield tensor


class SwitchedSender(Sender):
    """Offers what its checkpoint holds, and sends something else."""

    def _tensors(self) -> Mapping[str, torch.Tensor]:
        tensors = super()._tensors()
        return {**tensors, NORM: tensors[NORM] + 1}


class DyingSender(Sender):
    def _tensors(self) -> DiesMidway:
        return DiesMidway(super()._tensors())


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connected(None, num_cpus=2, temp_dir=None, timeout_s=60, object_store_bytes=128 * 1024**2):
        yield


@pytest.fixture(scope="module")
def engines(ray_here: None) -> list[Any]:
    """Two engines: one whose swaps are attested byte by byte, and one that packs its weights, and needs a probe."""
    host: Any = ray.remote(num_cpus=0)(Host)
    hosts = [host.remote("vllm", {"cpu_kv_cache_gib": 0.25, "attest": attest}) for attest in ("digest", "probe")]
    ray.get([one.weight_version.remote() for one in hosts], timeout=200)
    return hosts


@pytest.fixture(scope="module")
def perturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed model's folder with other weights."""
    folder = tmp_path_factory.mktemp("perturbed") / "checkpoint"
    shutil.copytree(SEED, folder)
    save_file(changed(read_checkpoint(SEED), 1), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def native(folder: Path, version: str) -> WeightUpdate:
    return replace(prepare(folder, version, "native"), probe=make_probe(folder, "float32", 1))


def swap(engine: Any, update: WeightUpdate) -> Attestation:
    return ray.get(engine.swap.remote(update), timeout=SWAP_S)


def said_by_transformers(folder: Path) -> list[tuple[int, ...]]:
    fresh = TransformersEngine(folder)
    return [one.token_ids for one in fresh.complete(requests(16), Sampling(48))]


def test_engines_swap_one_after_the_other_and_say_what_a_fresh_engine_says(engines: list[Any], perturbed: Path) -> None:
    said = []
    for folder, version in ((SEED, "r1"), (perturbed, "r2"), (SEED, "r3")):
        update, expected = native(folder, version), said_by_transformers(folder)
        for engine in engines:
            attested = swap(engine, update)
            assert (attested.version, attested.digest, attested.num_bytes) == (version, update.digest, num_bytes_in(update.manifest))
            assert ray.get(engine.weight_version.remote(), timeout=SWAP_S) == version
            assert ray.get(engine.say.remote(), timeout=SWAP_S) == expected
        said.append(expected)
    assert said[0] == said[2] != said[1]


def test_both_engines_swap_at_the_same_time(engines: list[Any], perturbed: Path) -> None:
    update = native(perturbed, "r4")
    attested = ray.get([engine.swap.remote(update) for engine in engines], timeout=SWAP_S)
    assert [one.digest for one in attested] == [update.digest] * 2
    assert ray.get([engine.say.remote() for engine in engines], timeout=SWAP_S) == [said_by_transformers(perturbed)] * 2


@pytest.mark.parametrize("fault", ["digest", "name"])
def test_what_does_not_fit_is_refused_and_the_old_weights_are_served(
    engines: list[Any], perturbed: Path, tmp_path: Path, fault: str
) -> None:
    swap(engines[0], native(SEED, "r5"))
    shutil.copytree(perturbed, tmp_path, dirs_exist_ok=True)
    if fault == "name":
        weights = read_checkpoint(perturbed)
        weights.pop(sorted(weights)[7])
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    update = prepare(tmp_path, "r6", "native")
    if fault == "digest":
        update = replace(update, digest="0" * 64)
    with pytest.raises(RayTaskError) as raised:
        swap(engines[0], update)
    assert isinstance(raised.value.cause, WeightMismatchError)
    assert {"digest": "was prepared", "name": "nothing given"}[fault] in str(raised.value.cause)
    assert ray.get(engines[0].weight_version.remote(), timeout=SWAP_S) == "r5"
    assert ray.get(engines[0].say.remote(), timeout=SWAP_S) == said_by_transformers(SEED)


def test_other_bytes_than_were_prepared_are_never_served(engines: list[Any], perturbed: Path) -> None:
    """The sender holds what it was asked for, but one tensor that it sends is not what was prepared."""
    actor: Any = ray.remote(SwitchedSender)
    sender = actor.options(num_cpus=0, max_concurrency=2).remote(perturbed)
    update = prepare(perturbed, "r7", "native")
    with pytest.raises(RayTaskError, match=f"the served weights have digest .*; {update.digest} was prepared") as raised:
        swap(engines[0], replace(update, stream=WeightStream(sender)))
    assert isinstance(raised.value.cause, SwapError)
    assert ray.get(engines[0].weight_version.remote(), timeout=SWAP_S) == ""


def test_an_engine_whose_sender_dies_midway_raises_at_once_and_serves_nothing(engines: list[Any], perturbed: Path) -> None:
    """The last test of these engines: this one may not be used again."""
    swap(engines[0], native(SEED, "r8"))
    update = native(perturbed, "r9")
    assert update.stream is not None
    actor: Any = ray.remote(DyingSender)
    sender = actor.options(num_cpus=0, max_concurrency=2).remote(perturbed)
    ray.get(sender.offer.remote(update.digest), timeout=SWAP_S)
    started = time.monotonic()
    with pytest.raises(RayTaskError, match="r9 could not be applied: weights were not sent over gloo") as raised:
        swap(engines[0], replace(update, stream=replace(update.stream, sender=sender)))
    assert time.monotonic() - started < 20
    assert isinstance(raised.value.cause, SwapError)
    assert ray.get(engines[0].weight_version.remote(), timeout=SWAP_S) == ""


def test_a_transformers_engine_fetches_the_weights(ray_here: None, perturbed: Path) -> None:
    engine, update = TransformersEngine(SEED), prepare(perturbed, "r1", "native")
    assert engine.swap(update).digest == update.digest
    assert [one.token_ids for one in engine.complete(requests(16), Sampling(48))] == said_by_transformers(perturbed)
