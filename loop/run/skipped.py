"""Findings about the samples that a training skipped, and a check of its images before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from actors.images import ImageSource
from actors.training.job import TrainingResult
from loop.sources.reading.first_images import problem_of
from loop.store.commits import Finding
from policies.records import TrainingSample

NUM_CHECKED_IMAGES = 64
"""Images to open before a training starts: enough to notice a wrong folder, few enough to be quick."""


def findings_of(result: TrainingResult, num_samples: int, *, with_place: bool = False) -> list[Finding]:
    """One finding per reason for skipping samples, one for steps without a token to learn, and one for skipped pairs.

    Args:
        result: the result of the training.
        num_samples: number of samples it was given.
        with_place: include the path of an image, which differs between machines and must not be committed.
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
    if result.num_skipped_pairs:
        num_pairs = result.num_pairs + result.num_skipped_pairs
        message = f"of {num_pairs} pairs passed over: image or text cannot be trained on, or early_stop holds the image out"
        findings.append(Finding(kind="passed_over_pairs", count=result.num_skipped_pairs, message=message))
    return findings


def unreadable_images(source: ImageSource, samples: Sequence[TrainingSample]) -> Finding | None:
    """Open up to `NUM_CHECKED_IMAGES` images, spread evenly over the samples, and return a finding if any cannot be read."""
    ids = list(dict.fromkeys(image_id for sample in samples for image_id in sample.images))
    checked_images = ids[:: -(-len(ids) // NUM_CHECKED_IMAGES)] if ids else []
    bad = [problem for image_id in checked_images if (problem := problem_of(source, image_id))]
    if not bad:
        return None
    message = f"of the {len(checked_images)} images looked at cannot be read; their samples will be passed over"
    return Finding(kind="unreadable_images", count=len(bad), message=message, example=bad[0])
