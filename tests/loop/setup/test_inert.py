"""What of a config has no effect is named, and what has one is not."""

from __future__ import annotations

from typing import Any

import pytest

from loop.config.run_config import parse_config
from loop.setup.assembly import build_policies
from loop.setup.inert import no_effect
from tests.loop.test_cli import document, shapes

VIEWS = {"sentence_by_sentence": {"num_views": 2}}
KNOWLEDGE = {"type_mix": {"okvqa": 1.0}}
EXEMPT = {"denials": [], "require_in_description": False}


def findings(**changes: Any) -> list[str]:
    config = parse_config(document("embedded", **changes))
    return [finding.message for finding in no_effect(config, build_policies(config))]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"filters": ["duplicates"], "generation": {"num_per_image": 1}}, "filter duplicates can reject nothing: scope image compares"),
        ({"filters": ["short_answer"]}, "filter short_answer can reject nothing: only okvqa and aokvqa have short answers"),
        ({"filters": [{"short_answer": {"min_weight": 0}}], "generation": KNOWLEDGE}, "every answer weighs at least 0"),
        ({"filters": [{"confidence": {"min_mean_logprob": -50}}]}, "filter confidence can reject nothing: every greedy answer"),
        (
            {"filters": [{"length": {"min_question_words": 0, "max_question_words": 500, "max_answer_words": 5000}}]},
            "filter length can reject nothing: it rejects only what is empty",
        ),
        ({"filters": [{"basis": EXEMPT}]}, "filter basis can reject nothing: it has no denials"),
        ({"filters": [{"basis": {"exempt": [".*"]}}]}, "filter basis can reject nothing: exempt matches every question"),
        (
            {"filters": [{"grounding": {"min_mean_gain": -99, "max_dropped_sentences": 8}}], "correction": "grounded"},
            "filter grounding can reject nothing: no answer has so many dropped sentences",
        ),
        ({"filters": ["grounding"], "correction": "grounded", "generation": KNOWLEDGE}, "it lets short answers pass"),
        ({"generation": {"temperature": 0, "top_p": 0.5}}, "generation.top_p 0.5 does nothing at temperature 0"),
        ({"generation": {"temperature": 0, "num_per_image": 4}}, "generation.num_per_image 4 at temperature 0 writes the same again"),
        ({"rounds": 1, "image_sets": [shapes(3), shapes(4)]}, "image_sets.1 is drawn from by none of 1 round(s)"),
        ({"selection": {"top_share": {"share": 1.0}}}, "selection top_share with share 1 takes every accepted record"),
        ({"mixing": {"replay": {"seed_share": 1.0}}}, "mixing.replay.seed_share 1 trains on seed data alone"),
        ({"rounds": 1, "overlap": 1, "cluster": {"colocated": False}}, "overlap 1 does nothing with rounds 1: there is no next round"),
        (
            {"rounds": 1, "generation": {"mean_teacher_decay": 0.7}},
            "generation.mean_teacher_decay 0.7 does nothing with rounds 1",
        ),
        ({"rounds": 1, "mixing": {"replay": {"newest_share": 0.5}}}, "mixing.replay.newest_share 0.5 does nothing with rounds 1"),
    ],
)
def test_what_has_no_effect_is_named(changes: dict[str, Any], text: str) -> None:
    (found,) = findings(**changes)
    assert text in found


@pytest.mark.parametrize(
    "changes",
    [
        {"filters": ["parsable", "length", "duplicates", "agreement", "confidence", "image_dependence", "basis"], "correction": VIEWS},
        {"filters": [{"duplicates": {"scope": "shard"}}], "generation": {"num_per_image": 1}},
        {"filters": ["short_answer"], "generation": {"type_mix": {"okvqa": 0.1, "detail": 0.9}}},
        {"filters": [{"confidence": {"min_mean_logprob": -50, "min_vig_mean_logprob": -3}}]},
        {"filters": ["grounding"], "correction": "grounded"},
        {"generation": {"temperature": 0, "num_per_image": 3}},
        {"rounds": 3, "image_sets": [shapes(3), shapes(4)]},
        {"selection": {"top_share": {"share": 1.0, "balance_types": True}}},
        {"rounds": 2, "overlap": 1, "cluster": {"colocated": False}},
        {"rounds": 2, "mixing": {"replay": {"seed_share": 0.99, "newest_share": 0.5}}},
    ],
)
def test_what_has_an_effect_is_not(changes: dict[str, Any]) -> None:
    assert findings(**changes) == []
