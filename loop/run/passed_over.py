"""What a training passed over, as findings for people; and a look at its images before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from actors.images import BadImageError, ImageSource
from actors.training.job import TrainingResult
from loop.store.commits import Finding
from policies.records import TrainingSample

NUM_LOOKED_AT = 64
"""Images that are opened before a training starts: enough to notice a wrong folder, few enough to take a moment."""


def findings_of(result: TrainingResult, num_samples: int, *, with_place: bool = False) -> list[Finding]:
    """One finding per reason for which samples were passed over, and one for steps that had nothing to learn.

    Args:
        result: of the training.
        num_samples: that it was given.
        with_place: tell where an image was looked for, which differs between machines and must not be committed.
    """
    findings = [
        Finding(
            kind=f"passed_over_{one.reason.value}",
            count=one.num_samples,
            message=f"of {num_samples} training samples passed over: {one.reason.explanation}",
            example=str(one) if with_place else one.example,
        )
        for one in result.skipped
    ]
    if result.num_empty_steps:
        message = f"of {result.num_steps} training steps had no token to learn and changed nothing: all their samples were passed over"
        findings.append(Finding(kind="empty_steps", count=result.num_empty_steps, message=message))
    return findings


def unreadable_images(source: ImageSource, samples: Sequence[TrainingSample]) -> Finding | None:
    """Open up to `NUM_LOOKED_AT` of the samples' images, spread over all of them; what cannot be read, if anything."""
    ids = list(dict.fromkeys(sample.image_id for sample in samples))
    looked_at = ids[:: -(-len(ids) // NUM_LOOKED_AT)] if ids else []
    bad = []
    for image_id in looked_at:
        try:
            source.open(image_id)
        except BadImageError as error:
            bad.append(str(error))
    if not bad:
        return None
    message = f"of the {len(looked_at)} images looked at cannot be read; their samples will be passed over"
    return Finding(kind="unreadable_images", count=len(bad), message=message, example=bad[0])
