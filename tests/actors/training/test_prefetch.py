"""Reading ahead: the same items in the same order, one ahead of the caller, and nothing goes on when the caller stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from actors.training.prefetch import prefetch


def counted(made: list[int], num: int) -> Iterator[int]:
    for i in range(num):
        made.append(i)
        yield i


def test_the_items_come_in_order() -> None:
    with prefetch(counted([], 100)) as items:
        assert list(items) == list(range(100))
    with prefetch(counted([], 0)) as items:
        assert list(items) == []


def test_the_next_item_is_made_while_the_caller_is_at_one_and_no_more() -> None:
    made: list[int] = []
    is_second_made = threading.Event()

    def told() -> Iterator[int]:
        for item in counted(made, 100):
            if item == 1:
                is_second_made.set()
            yield item

    with prefetch(told()) as items:
        assert next(items) == 0
        assert is_second_made.wait(10.0), "while the caller holds the first item"
        assert made == [0, 1]


def test_an_error_comes_in_the_place_of_its_item() -> None:
    def failing() -> Iterator[int]:
        yield from range(2)
        raise ValueError("no third")

    with prefetch(failing()) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(ValueError, match="no third"):
            next(items)


def test_when_the_caller_stops_the_thread_has_ended() -> None:
    made: list[int] = []
    with suppress(KeyboardInterrupt), prefetch(counted(made, 100)) as items:
        assert next(items) == 0
        raise KeyboardInterrupt
    assert len(made) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading ahead")]
