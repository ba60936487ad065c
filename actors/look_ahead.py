"""Look-ahead: threads open the next images while an engine computes.

Threads suffice, because Pillow releases the GIL while it decodes and resizes; processes would have to send every image.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from PIL import Image

from actors.images import LazyImage, opened

Planned = Iterable[tuple[Hashable, Image.Image | LazyImage]]
"""Images in the order of their use, each under a key of its own."""


class LookAhead:
    """Images that worker threads open before they are asked for. Not for several threads."""

    def __init__(self, pool: ThreadPoolExecutor, planned: Planned, num_ahead: int) -> None:
        self._pool = pool
        self._planned = iter(planned)
        self._num_ahead = num_ahead
        self._coming: dict[Hashable, Future[Image.Image]] = {}
        self._fill()

    def open(self, key: Hashable, image: Image.Image | LazyImage) -> Image.Image:
        """The pixels of an image. One that was not planned, or not under this key, is opened here. Raises as `LazyImage.open` does."""
        coming = self._coming.pop(key, None)
        self._fill()
        return opened(image) if coming is None else coming.result()

    def discard(self, keys: Iterable[Hashable]) -> None:
        """Forget planned images that were not needed after all."""
        for key in keys:
            self._coming.pop(key, None)

    def _fill(self) -> None:
        for key, image in islice(self._planned, self._num_ahead - len(self._coming)):
            self._coming[key] = self._pool.submit(opened, image)


@contextmanager
def looking_ahead(planned: Planned, num_workers: int, num_ahead: int) -> Iterator[LookAhead]:
    """Open planned images in `num_workers` threads, at most `num_ahead` of them before they are asked for.

    `planned` is read only as far as images are opened. Leaving the `with` block waits for the images in progress and ends the threads.
    """
    pool = ThreadPoolExecutor(num_workers, "opening images")
    try:
        yield LookAhead(pool, planned, num_ahead)
    finally:
        pool.shutdown(cancel_futures=True)
