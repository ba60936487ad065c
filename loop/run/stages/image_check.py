"""Checks whether a round could read its images."""

from __future__ import annotations

from collections.abc import Iterable

from loop.errors import NoReadableImageError, printable
from loop.store.commits import Finding
from loop.store.run_store import Store
from policies.counts import RecordCounts


def check_images(store: Store, index: int, records: RecordCounts, part_names: Iterable[str]) -> list[Finding]:
    """A finding with an example about images that were set aside, if any.

    If no image could be read, the parts of the round are dropped before the error is raised, so that `vigc resume` tries the images
    again.

    Raises:
        NoReadableImageError: no image of the round could be read.
    """
    if not records.unreadable_images:
        return []
    example = printable(records.unreadable_example)
    if records.unreadable_images < records.images:
        message = f"of the round's {records.images} images cannot be read and are set aside; their records say why"
        return [Finding(kind="unreadable_images", count=records.unreadable_images, message=message, example=example)]
    for name in part_names:
        store.drop_part(index, name)
    raise NoReadableImageError(index, records.images, example)
