"""Sleep on vLLM. Its CPU build has no sleep mode: there an engine refuses, and what can be tried is that vLLM stops and goes on."""

from __future__ import annotations

import pytest

from actors.engines.base import Sampling
from actors.engines.errors import EngineError
from actors.engines.vllm.engine import VllmEngine
from tests.vllm.worlds import changed, requests, seed_weights, update_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

REQUESTS = requests(4)


def test_an_engine_that_was_made_without_sleep_mode_refuses_and_goes_on(engine: VllmEngine) -> None:
    before = engine.complete(REQUESTS, Sampling(8))
    with pytest.raises(EngineError, match="created without sleep mode"):
        engine.sleep()
    assert engine.complete(REQUESTS, Sampling(8)) == before


def test_a_sleeping_engine_says_nothing_and_wakes_by_a_swap(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU vLLM's workers keep their memory; all of vLLM above them sleeps and wakes as on a GPU."""
    monkeypatch.setattr(engine, "_can_sleep", True)
    seed = [one.token_ids for one in engine.complete(REQUESTS, Sampling(24))]
    engine.sleep()
    engine.sleep()
    assert engine.llm.llm_engine.is_sleeping()
    assert engine.weight_version == ""
    with pytest.raises(EngineError, match="is asleep; swap weights"):
        engine.complete(REQUESTS, Sampling(8))
    with pytest.raises(EngineError, match="is asleep; swap weights"):
        engine.score(REQUESTS, ["Yes."] * len(REQUESTS))

    new = update_of(changed(seed_weights(), 1), "new")
    assert engine.swap(new).digest == new.digest

    assert not engine.llm.llm_engine.is_sleeping()
    other = [one.token_ids for one in engine.complete(REQUESTS, Sampling(24))]
    engine.sleep()
    engine.swap(update_of(seed_weights(), "seed"))
    assert [one.token_ids for one in engine.complete(REQUESTS, Sampling(24))] == seed != other
