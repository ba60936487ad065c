"""One engine for all tests in this process: vLLM can be constructed once in each."""

from __future__ import annotations

import pytest

from actors.engines import EngineSpec, build_engine
from actors.engines.transformers import TransformersEngine
from actors.engines.vllm.engine import VllmEngine
from loop.config.run_config import EMBEDDED_MODEL
from tests.vllm.worlds import seed_weights, update_of


@pytest.fixture(scope="session")
def built() -> VllmEngine:
    pytest.importorskip("vllm", reason="needs vLLM: make install-vllm")
    engine = build_engine(EngineSpec("vllm", str(EMBEDDED_MODEL), {"cpu_kv_cache_gib": 0.25}))
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture
def engine(built: VllmEngine) -> VllmEngine:
    """The engine, serving the seed model's weights as `seed`."""
    built.swap(update_of(seed_weights(), "seed"))
    return built


@pytest.fixture(scope="session")
def reference() -> TransformersEngine:
    return TransformersEngine(EMBEDDED_MODEL)
