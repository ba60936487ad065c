"""Check the first images of a set, so that a wrong folder, or paths in place of images, is found before an actor starts."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from actors.images import BadImageError
from loop.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors.images import ImageSource

NUM_TRIED = 20
"""Number of images of which at least one must be readable."""


def problem_of(source: ImageSource, image_id: str) -> str:
    """Why an image cannot be read; empty if it can."""
    try:
        source.open(image_id)
    except BadImageError as error:
        return str(error)
    return ""


def refuse_unreadable(source: ImageSource, image_ids: Iterable[str], what: str, remedy: str) -> None:
    """Open the first images of a set until one can be read.

    Args:
        source: opens them.
        image_ids: of the set, in its order.
        what: the set, as an error names it.
        remedy: what the user may do.

    Raises:
        UserError: none of them can be read; the text says why for the first.
    """
    problems: list[str] = []
    for image_id in islice(image_ids, NUM_TRIED):
        if not (problem := problem_of(source, image_id)):
            return
        problems.append(problem)
    if problems:
        which = "the only image" if len(problems) == 1 else f"none of the first {len(problems)} images"
        can = "cannot" if len(problems) == 1 else "can"
        raise UserError(f"{which} of {what} {can} be read ({problems[0]}); {remedy}")
