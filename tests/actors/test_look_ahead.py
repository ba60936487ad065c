"""Look-ahead: what is opened when, in which thread, and that errors and results arrive where they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from cachetools import LRUCache
from PIL import Image

from actors.engines.base import Completion, FinishReason, Request, Sampling
from actors.engines.transformers import TransformersEngine
from actors.images import BadImageError
from actors.look_ahead import LookAhead, looking_ahead
from actors.shards import ShardImages
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.source import ShapesImages

LIMIT_S = 30
SOURCE = ShapesImages(seed=5, min_shift=0.0, max_shift=0.2, num_images=12)
IDS = SOURCE.image_ids()


@dataclass
class Watched:
    """A source that notes what is opened, and lets a test decide what that does."""

    reaction: Callable[[str], None] = lambda image_id: None
    opened: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def image_ids(self) -> list[str]:
        return IDS

    def open(self, image_id: str) -> Image.Image:
        self.opened.append(image_id)
        self.threads.add(threading.current_thread().name)
        self.reaction(image_id)
        return SOURCE.open(image_id)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(EMBEDDED_MODEL, batch_size=4, image_workers=2)


def requests(images: ShardImages, image_ids: list[str] = IDS) -> list[Request]:
    return [Request(images.image(one), "What is at the center?", image_key=images.key(one)) for one in image_ids]


def opening_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("opening images")]


def test_no_more_images_are_opened_than_may_wait() -> None:
    source = Watched()
    images = ShardImages(source)
    planned = ((one, images.image(one)) for one in IDS)
    with looking_ahead(planned, num_workers=2, num_ahead=3) as ahead:
        for number, one in enumerate(IDS):
            ahead.open(one, images.image(one))
            assert len(source.opened) <= number + 1 + 3
        assert sorted(source.opened) == sorted(IDS)
    assert not opening_threads()


def test_workers_open_images_at_the_same_time_while_the_caller_computes() -> None:
    together = threading.Barrier(3, timeout=LIMIT_S)
    images = ShardImages(Watched(lambda image_id: None if image_id in IDS[2:] else together.wait() and None))
    with looking_ahead(((one, images.image(one)) for one in IDS[:2]), num_workers=2, num_ahead=2) as ahead:
        together.wait()  # passes only while both images are being opened, which nobody has asked for yet
        assert [ahead.open(one, images.image(one)).size for one in IDS[:2]] == [SOURCE.open(one).size for one in IDS[:2]]


def test_a_block_that_fails_ends_its_threads_and_opens_nothing_more() -> None:
    source = Watched()
    images = ShardImages(source)
    with pytest.raises(KeyError), looking_ahead(((one, images.image(one)) for one in IDS), num_workers=1, num_ahead=4):
        raise KeyError
    assert len(source.opened) <= 4
    assert not opening_threads()


def test_an_engine_opens_the_next_batch_while_it_computes(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch ends only after the images of the second are open."""
    is_open = threading.Event()
    source = Watched(lambda image_id: is_open.set() if len(source.opened) == 8 else None)
    encode = engine._family.encode

    def slow(images: list[Image.Image]) -> object:
        assert is_open.wait(LIMIT_S)
        return encode(images)

    monkeypatch.setattr(engine._family, "encode", slow)
    images = ShardImages(source)
    assert len(engine.complete(requests(images, IDS[:8]), Sampling(2))) == 8
    assert source.threads <= {"opening images_0", "opening images_1"}
    assert not opening_threads()


def test_images_with_cached_features_are_not_opened(engine: TransformersEngine) -> None:
    source = Watched()
    images = ShardImages(source)
    engine.complete(requests(images), Sampling(2))
    images._kept.clear()
    engine.complete(requests(images), Sampling(4))
    engine.score(requests(images), ["A ring."] * len(IDS))
    engine.score(requests(images), ["A ring."] * len(IDS), blank_image=True)  # needs the sizes alone
    assert sorted(source.opened) == sorted(IDS)


def test_features_that_do_not_fit_into_the_cache_are_computed_again(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def complete() -> list[Completion]:
        images = ShardImages(Watched())
        asked = [replace(one, prompt=prompt) for prompt in ("What is it?", "What is at the top?") for one in requests(images) * 2]
        return engine.complete(asked, Sampling(4))

    expected = complete()
    num_bytes = next(iter(engine._features.values())).num_bytes
    monkeypatch.setattr(engine, "_features", LRUCache(3 * num_bytes, lambda features: features.num_bytes))
    ahead: list[LookAhead] = []
    monkeypatch.setattr(LookAhead, "__init__", noted(LookAhead.__init__, ahead))
    assert complete() == expected
    assert [len(one._coming) for one in ahead] == [0]


def noted(init: Callable[..., None], made: list[LookAhead]) -> Callable[..., None]:
    def noting(self: LookAhead, *args: object) -> None:
        made.append(self)
        init(self, *args)

    return noting


def test_a_bad_image_changes_no_other_row(engine: TransformersEngine) -> None:
    def refuse(image_id: str) -> None:
        if image_id == IDS[5]:
            raise BadImageError("is corrupt")

    sampled = Sampling(8, temperature=1.0, seed=3)
    whole = engine.complete(requests(ShardImages(Watched())), sampled)
    bad = ShardImages(source := Watched(refuse))
    found = engine.complete(requests(bad), sampled, skip_bad_images=True)
    assert [one.finish_reason for one in found].index(FinishReason.BAD_IMAGE) == 5
    assert [one.token_ids for one in found[:5] + found[6:]] == [one.token_ids for one in whole[:5] + whole[6:]]
    with pytest.raises(BadImageError, match="is corrupt"):
        engine.complete(requests(bad), sampled)
    assert source.opened.count(IDS[5]) == 1
    assert not opening_threads()


def test_images_that_do_not_fit_into_memory_together_are_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = 3 * SOURCE.open(IDS[0]).width ** 2
    monkeypatch.setattr("actors.shards._KEPT_BYTES", 2 * num_bytes)
    images = ShardImages(source := Watched())
    for image_id in (IDS[0], IDS[1], IDS[0], IDS[2], IDS[0], IDS[1]):
        images.open(image_id)
    assert source.opened == [IDS[0], IDS[1], IDS[2], IDS[1]]
    assert images.size(IDS[2]) == SOURCE.open(IDS[2]).size
    assert source.opened == [IDS[0], IDS[1], IDS[2], IDS[1]]
