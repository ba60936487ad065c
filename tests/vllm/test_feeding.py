"""vLLM is fed while it computes: few images are open at a time, and a call that fails leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from actors.engines.base import FinishReason, Request, Sampling
from actors.engines.errors import EngineError
from actors.engines.vllm.engine import VllmEngine
from actors.images import BadImageError
from actors.shards import ShardImages
from loop.sources.shapes.source import ShapesImages
from tests.vllm.worlds import changed, seed_weights, update_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

SOURCE = ShapesImages(5, 0.0, 0.5, 24)
IDS = SOURCE.image_ids()
ASK = "What is at the center?"


@dataclass
class Watched:
    """A source that notes what is opened; some of its images are bad."""

    bad: str = ""
    opened: list[str] = field(default_factory=list)

    def image_ids(self) -> list[str]:
        return IDS

    def open(self, image_id: str) -> Image.Image:
        self.opened.append(image_id)
        if image_id == self.bad:
            raise BadImageError("is corrupt")
        return SOURCE.open(image_id)


@pytest.fixture
def few(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmEngine]:
    """An engine that has few prompts in flight."""
    monkeypatch.setattr(engine._feeder, "_batch_size", 3)
    yield engine
    assert not engine.llm.llm_engine.has_unfinished_requests()


def asked(source: Watched) -> list[Request]:
    images = ShardImages(source)
    return [Request(images.image(one), ASK, image_key=images.key(one)) for one in IDS]


def test_few_images_are_open_before_the_first_prompts_end(few: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    source, step, seen = Watched(), few.llm.llm_engine.step, []

    def watched() -> list[Any]:
        seen.append((len(source.opened), few.llm.llm_engine.get_num_unfinished_requests()))
        return step()

    monkeypatch.setattr(few.llm.llm_engine, "step", watched)
    few.complete(asked(source), Sampling(8))
    assert max(in_flight for _, in_flight in seen) == 6
    assert seen[0][0] <= 6 + 3
    assert sorted(source.opened) == sorted(IDS)


def test_what_vllm_has_cached_is_not_opened_again(few: VllmEngine) -> None:
    requests = asked(source := Watched())
    first = few.complete(requests, Sampling(8))
    requests[0].image.images._kept.clear()  # type: ignore[union-attr]
    again = few.complete(requests, Sampling(8))
    assert [one.token_ids for one in first] == [one.token_ids for one in again]
    few.score(requests, ["A ring."] * len(IDS), blank_image=True)
    assert sorted(source.opened) == sorted(IDS)
    few.swap(update_of(changed(seed_weights(), 1), "new"))  # which clears vLLM's caches
    few.complete(requests, Sampling(8))
    assert len(source.opened) == 2 * len(IDS)


def test_a_bad_image_changes_no_other_row_and_leaves_nothing_behind(few: VllmEngine) -> None:
    sampled = Sampling(16, temperature=1.0, seed=3)
    whole = few.complete(asked(Watched()), sampled)
    bad = asked(source := Watched(IDS[9]))
    found = few.complete(bad, sampled, skip_bad_images=True)
    assert [row for row, one in enumerate(found) if one.finish_reason is FinishReason.BAD_IMAGE] == [9]
    assert [one.token_ids for one in found[:9] + found[10:]] == [one.token_ids for one in whole[:9] + whole[10:]]
    for ask in (lambda: few.complete(bad, sampled), lambda: few.score(bad, ["A ring."] * len(IDS))):
        with pytest.raises(BadImageError, match="is corrupt"):
            ask()
        assert not few.llm.llm_engine.has_unfinished_requests()
    assert source.opened.count(IDS[9]) == 1


def test_a_step_that_fails_is_named_and_leaves_nothing_behind(few: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = few.complete(asked(Watched()), Sampling(8))
    with monkeypatch.context() as patched:
        patched.setattr(few.llm.llm_engine, "step", lambda: (_ for _ in ()).throw(RuntimeError("the device is lost")))
        with pytest.raises(EngineError, match="vLLM failed: the device is lost"):
            few.complete(asked(Watched()), Sampling(8))
    assert not few.llm.llm_engine.has_unfinished_requests()
    assert [one.token_ids for one in few.complete(asked(Watched()), Sampling(8))] == [one.token_ids for one in before]
