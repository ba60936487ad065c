"""Correction against VIGC's published inference: token for token the same answers under greedy decoding."""

from __future__ import annotations

from pathlib import Path

from benchmarks.speed.correction_speed import compare
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.source import ShapesImages


def assert_equal_and_cheaper(checkpoint: Path, source: ShapesImages) -> None:
    """210 records of all three types: the same questions and answers, from one look at each image."""
    found = compare("", checkpoint, source, runs=1)
    assert found.num_records == 3 * len(source.image_ids())
    assert found.num_equal == found.num_compared >= 200
    assert found.ours.images_seen == len(source.image_ids())
    assert found.published.images_seen == 5 * found.num_records  # the count can tell the difference
    assert found.ours.decoded_tokens < found.published.decoded_tokens


def test_a_decoder_only_model_answers_as_the_published_inference_does() -> None:
    assert_equal_and_cheaper(EMBEDDED_MODEL, ShapesImages(5001, 0.0, 0.6, 70))
