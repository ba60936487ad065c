"""Reads ahead: prepares the next step while the device computes the current one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

_Item = TypeVar("_Item")


@contextmanager
def prefetch(items: Iterator[_Item]) -> Iterator[Iterator[_Item]]:
    """The same items in the same order, each made while the caller works on the previous one. No item may be `None`.

    One thread of this process makes them. Decoding and resizing images releases the GIL, the thread shares the caches of this process,
    and it ends with the process. Worker processes would each need a cache, receive every tensor, and outlive a killed rank.

    Leaving the `with` block waits for the item in progress and ends the thread. An error of the iterator is raised in place of its
    item.
    """
    with ThreadPoolExecutor(1, "reading ahead") as pool:
        yield _prefetched(items, pool)


def _prefetched(items: Iterator[_Item], pool: ThreadPoolExecutor) -> Iterator[_Item]:
    coming = pool.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = pool.submit(next, items, None)
        yield item
