"""Checks whether a round could read its images."""

from __future__ import annotations

from collections.abc import Iterable

from loop.errors import NoReadableImageError, printable
from loop.store.commits import Finding
from loop.store.run_store import Store
from policies.counts import RecordCounts

_UNREADABLE = "cannot be read and are set aside; their records say why"
_HELD_OUT = "are images of held-out or acceptance sets and are set aside; their records say of which"


def check_images(store: Store, index: int, records: RecordCounts, part_names: Iterable[str]) -> list[Finding]:
    """Findings with an example about images that were set aside, if any.

    If no image could be read, the parts of the round are dropped before the error is raised, so that `vigc resume` tries the images
    again.

    Raises:
        NoReadableImageError: no image of the round could be read.
    """
    if records.unreadable_images and records.unreadable_images == records.images:
        for name in part_names:
            store.drop_part(index, name)
        raise NoReadableImageError(index, records.images, printable(records.unreadable_example))
    return [
        Finding(kind=kind, count=count, message=f"of the round's {records.images} images {why}", example=printable(example))
        for kind, count, why, example in (
            ("unreadable_images", records.unreadable_images, _UNREADABLE, records.unreadable_example),
            ("held_out_images", records.held_out_images, _HELD_OUT, records.held_out_example),
        )
        if count
    ]
