"""Whether a round could read its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from loop.errors import NoReadableImageError, printable
from policies.records import Reason, Record

if TYPE_CHECKING:
    from loop.house import House


def check_images(house: House, index: int, records: Sequence[Record], part_names: Iterable[str]) -> None:
    """Report the images that were set aside, with an example.

    Where not one image could be read, the parts of the round are dropped before the error: they hold nothing, and `vigc resume` has to
    try the images again.

    Raises:
        NoReadableImageError: no image of the round could be read.
    """
    bad = {record.image_id: record.reason_detail for record in records if Reason.UNREADABLE_IMAGE in record.reasons}
    if not bad:
        return
    image_id, detail = next(iter(bad.items()))
    example = printable(detail or image_id)
    num_images = len({record.image_id for record in records})
    if len(bad) < num_images:
        house.progress.note(f"round {index}: {len(bad)} of {num_images} images are set aside, such as {example}")
        return
    for name in part_names:
        house.store.drop_part(index, name)
    raise NoReadableImageError(index, num_images, example)
