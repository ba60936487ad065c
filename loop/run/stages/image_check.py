"""Checks whether a round could read its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loop.errors import NoReadableImageError, printable
from loop.store.commits import Finding
from loop.store.run_store import Store
from policies.records import Reason, Record


def check_images(store: Store, index: int, records: Sequence[Record], part_names: Iterable[str]) -> list[Finding]:
    """A finding with an example about images that were set aside, if any.

    If no image could be read, the parts of the round are dropped before the error is raised, so that `vigc resume` tries the images
    again.

    Raises:
        NoReadableImageError: no image of the round could be read.
    """
    bad = {record.image_id: record.reason_detail for record in records if Reason.UNREADABLE_IMAGE in record.reasons}
    if not bad:
        return []
    image_id, detail = next(iter(bad.items()))
    example = printable(detail or image_id)
    num_images = len({record.image_id for record in records})
    if len(bad) < num_images:
        message = f"of the round's {num_images} images cannot be read and are set aside; their records say why"
        return [Finding(kind="unreadable_images", count=len(bad), message=message, example=example)]
    for name in part_names:
        store.drop_part(index, name)
    raise NoReadableImageError(index, num_images, example)
