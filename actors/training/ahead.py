"""Reading ahead: what the next step needs is made while the device is at the one before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

_Item = TypeVar("_Item")


@contextmanager
def ahead(items: Iterator[_Item]) -> Iterator[Iterator[_Item]]:
    """The same items, none of them `None`, in the same order, each of them made while the caller is at the one before.

    They are made in one thread of this process. To decode and resize pictures needs no GIL, the thread shares the caches of this process,
    and it ends with the process. Worker processes would each keep a cache of their own, be sent every tensor, and outlive a killed rank.

    At the end of the `with` block the thread has ended; that waits for the item that is being made. What the iterator raises is raised
    where its item would be.
    """
    with ThreadPoolExecutor(1, "reading ahead") as pool:
        yield _taken(items, pool)


def _taken(items: Iterator[_Item], pool: ThreadPoolExecutor) -> Iterator[_Item]:
    coming = pool.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = pool.submit(next, items, None)
        yield item
