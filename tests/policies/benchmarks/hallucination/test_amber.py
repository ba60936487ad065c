"""AMBER's yes-or-no questions: the four figures by hand, as printed by the public code, and the files of the release."""

from __future__ import annotations

from typing import Any

import pytest

from policies.benchmarks import BENCHMARKS, Document
from tests.policies.benchmarks.make import document, faults, score

KINDS = ["discriminative-hallucination"] * 3 + ["discriminative-attribute-state", "discriminative-attribute-number"]
KINDS += ["discriminative-relation", "relation"]
TRUTHS = ["no", "no", "no", "yes", "no", "yes", "no"]
NUMBERS = range(1005, 1012)
QUERIES = document([{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}]
                   + [{"id": i, "image": f"AMBER_{i}.jpg", "query": f"Is it {i}?"} for i in NUMBERS], "query_all.json")  # fmt: skip
LABELS: list[dict[str, Any]] = [{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]}]
LABELS += [{"id": i, "type": kind, "truth": truth} for i, kind, truth in zip(NUMBERS, KINDS, TRUTHS, strict=True)]
ANNOTATIONS = document(LABELS, "annotations.json")
FILES = [QUERIES, ANNOTATIONS]


def said(*answers: str) -> Document:
    """As AMBER has models answer, descriptions in the same file."""
    answered = [{"id": i, "response": text} for i, text in zip(NUMBERS, answers, strict=True)]
    return document([{"id": 1, "response": "A dog."}, *answered], "answers.json")


def test_no_is_the_positive_class() -> None:
    """By hand: of 5 times no, 4 are right; of 5 questions with no, 4 are answered so; 5 of 7 are right."""
    found = score("amber", FILES, said("No", "no.", "Yes, it is", "No", "No", "Yes", "There is none."))
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((80, 80, 80))
    assert (found["accuracy"], found["no_ratio"]) == pytest.approx((500 / 7, 500 / 7))
    assert (found["num_questions"], found["num_unparsable"]) == (7, 0)
    by = found["by_dimension"]
    assert list(by) == ["existence", "attribute", "state", "number", "relation"]
    assert (by["existence"]["recall"], by["existence"]["precision"], by["attribute"]["accuracy"]) == (pytest.approx(200 / 3), 100, 50)
    assert by["relation"]["f1"] == 100


def test_the_public_code_takes_two_spellings_and_rounds() -> None:
    """By hand, for existence: 2 of 3 and 2 of 2, each count 0.001 larger; F1 = 2 * 1 * 0.667 / (1.667 + 0.001)."""
    found = score("amber", FILES, said("No", "No", "no", "Yes", "No", "Yes", "No"), published=True)
    existence = found["by_dimension"]["existence"]
    assert (existence["accuracy"], existence["precision"], existence["recall"], existence["f1"]) == (66.6, 100.0, 66.6, 79.9)
    assert (found["accuracy"], found["precision"], found["recall"], found["f1"]) == (85.7, 100.0, 80.0, 88.9)
    assert found["num_unparsable"] == 1


def test_only_the_questions_of_the_queries_are_asked() -> None:
    benchmark = BENCHMARKS.build("amber")
    [one] = benchmark.read([document([{"id": 1008, "image": "AMBER_9.jpg", "query": "Is the sky blue?"}]), ANNOTATIONS])
    assert (one.question_id, one.image, one.category, one.answers) == ("1008", "AMBER_9.jpg", "state", ("yes",))
    assert benchmark.prompt(one) == "Is the sky blue? Please answer yes or no."


def test_files_that_do_not_fit_are_refused() -> None:
    good = document({})
    assert faults("amber", [QUERIES], good) == ["query_all.json: no annotations (annotations.json); AMBER needs both, each with --data"]
    assert "no queries (query_discriminative.json)" in faults("amber", [ANNOTATIONS], good)[0]
    assert "only descriptions" in faults("amber", [document([{"id": 1, "query": "Describe."}]), ANNOTATIONS], good)[0]
    assert "id 2 has no annotation" in faults("amber", [document([{"id": 2, "query": "Is it?"}]), ANNOTATIONS], good)[0]
    odd = document([{**LABELS[1], "type": "discriminative-smell"}], "annotations.json")
    assert "annotations.json, entry 0: type is 'discriminative-smell'" in faults("amber", [QUERIES.__class__(
        "q.json", None, QUERIES.entries[1:2] if QUERIES.entries else None), odd], good)[0]  # fmt: skip
    assert "neither a query nor the truth" in faults("amber", [document([{"id": 3}])], good)[0]
    assert "no prediction for 6 of 7 questions" in faults("amber", FILES, document([{"id": 1005, "response": "No"}]))[0]
