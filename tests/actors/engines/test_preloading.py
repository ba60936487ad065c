"""What is loaded ahead of a swap is taken by that swap alone, and never waits for anything but itself."""

from __future__ import annotations

from threading import Event, Thread, Timer

import pytest

from actors.engines.base import WeightUpdate
from actors.engines.errors import WeightMismatchError
from actors.engines.preloading import Preloader

WAIT_S = 10.0


def update(version: str, digest: str = "d") -> WeightUpdate:
    return WeightUpdate(version, digest, {})


@pytest.fixture
def loaded() -> list[str]:
    """Versions that were loaded, in order."""
    return []


@pytest.fixture
def preloader(loaded: list[str]) -> Preloader[str]:
    def load(update: WeightUpdate) -> str:
        loaded.append(update.version)
        if update.version == "bad":
            raise WeightMismatchError("bad does not fit")
        return f"{update.version}-{update.digest}"

    return Preloader(load)


def test_what_is_preloaded_is_taken_once(preloader: Preloader[str], loaded: list[str]) -> None:
    preloader.preload(update("a"))
    preloader.preload(update("a"))
    assert preloader.take(update("a")) == "a-d"
    assert loaded == ["a"]
    assert preloader.take(update("a")) == "a-d"
    assert loaded == ["a", "a"]


def test_another_version_or_digest_is_loaded_and_drops_what_is_preloaded(preloader: Preloader[str], loaded: list[str]) -> None:
    for other in (update("b"), update("a", "e")):
        preloader.preload(update("a"))
        assert preloader.take(other) == f"{other.version}-{other.digest}"
        assert preloader.take(update("a")) == "a-d"
        preloader.take(update("c"))
    assert loaded == ["a", "b", "a", "c", "a", "a", "a", "c"]


def test_what_is_preloaded_later_takes_its_place(preloader: Preloader[str], loaded: list[str]) -> None:
    preloader.preload(update("a"))
    preloader.preload(update("b"))
    assert preloader.take(update("b")) == "b-d"
    assert loaded == ["a", "b"]


def test_what_its_swap_has_overtaken_is_not_preloaded(preloader: Preloader[str], loaded: list[str]) -> None:
    preloader.take(update("a"))
    preloader.preload(update("a"))
    assert loaded == ["a"]


def test_a_refusal_is_raised_where_it_is_taken_and_nowhere_else(preloader: Preloader[str], loaded: list[str]) -> None:
    preloader.preload(update("bad"))
    with pytest.raises(WeightMismatchError, match="bad does not fit"):
        preloader.take(update("bad"))
    assert loaded == ["bad"]
    preloader.preload(update("bad"))
    assert preloader.take(update("a")) == "a-d"


def test_a_swap_waits_for_its_own_preloading_alone() -> None:
    began, go_on = Event(), Event()
    loaded: list[str] = []

    def load(update: WeightUpdate) -> str:
        loaded.append(update.version)
        if update.version == "slow":
            began.set()
            assert go_on.wait(WAIT_S)
        return update.version

    preloader = Preloader(load)
    given_up = Thread(target=preloader.preload, args=(update("slow"),))
    given_up.start()
    assert began.wait(WAIT_S)
    assert preloader.take(update("quick")) == "quick"
    assert given_up.is_alive()
    began.clear()
    waited_for = Thread(target=preloader.preload, args=(update("slow", "e"),))
    waited_for.start()
    assert began.wait(WAIT_S)
    release = Timer(0.05, go_on.set)
    release.start()
    assert preloader.take(update("slow", "e")) == "slow"
    assert loaded == ["slow", "quick", "slow"]
    for thread in (given_up, waited_for, release):
        thread.join(WAIT_S)
