"""Precision and recall against people, computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from scipy.stats import binomtest

from loop.review.estimates import Share, agreements, num_unseen, weighed
from loop.review.labels import Reviewed, most_said
from policies.filtering.attribution import judges
from policies.metrics import wilson
from policies.records import Reason

CHAIN = judges(["parsable", "agreement", "confidence"])


def reviewed(number: int, label: str | None, reason: str = "", stratum: str | None = None, size: int = 1) -> Reviewed:
    return Reviewed(f"r1-{number}", 1, not reason, reason, (reason or "accepted") if stratum is None else stratum, size, label)


def by_name(records: Sequence[Reviewed]) -> dict[str, tuple[Share, Share]]:
    return {one.name: (one.precision, one.recall) for one in agreements(weighed(records), CHAIN)}


def test_labels_stand_for_the_records_of_their_stratum() -> None:
    records = [
        *(reviewed(number, "right", size=90) for number in range(2)),  # 90 accepted records, three labelled: 30 each
        reviewed(2, "wrong", size=90),
        reviewed(3, "wrong", Reason.ANSWERS_DISAGREE, size=20),  # 10 each
        reviewed(4, "right", Reason.ANSWERS_DISAGREE, size=20),
        reviewed(5, "bad question", Reason.LOW_CONFIDENCE, size=8),
        reviewed(6, "right", stratum=""),  # an extreme: itself
    ]
    found = by_name(records)
    precision, recall = found["verdict"]
    assert precision.value == pytest.approx(61 / 91)
    assert recall.value == pytest.approx(61 / 71)
    assert precision.num_labels == recall.num_labels == 4
    assert (precision.low, precision.high) == pytest.approx(wilson(61 / 91, 91**2 / (3 * 30**2 + 1)))
    precision, recall = found["agreement"]
    assert precision.value == pytest.approx(0.5)
    assert recall.value == pytest.approx(10 / (30 + 10 + 8))
    assert found["confidence"][0].value == 1.0
    assert found["confidence"][1].value == pytest.approx(8 / (30 + 8)), "it never saw what agreement rejected"
    assert found["parsable"] == (Share(None, None, None, 0), Share(0.0, 0.0, pytest.approx(found["parsable"][1].high), 3))
    assert found["deduplication"][1].value == 0.0


def test_equal_weights_give_the_usual_interval() -> None:
    precision, _ = by_name([reviewed(number, "right" if number < 7 else "wrong", size=10) for number in range(10)])["verdict"]
    expected = binomtest(7, 10).proportion_ci(method="wilson")
    assert (precision.low, precision.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson(0.0, 5)[0] == pytest.approx(0.0)
    assert wilson(1.0, 5)[1] == pytest.approx(1.0)


def test_a_round_without_accepted_records_has_no_precision() -> None:
    precision, recall = by_name([reviewed(0, "right", Reason.LOW_CONFIDENCE), reviewed(1, "wrong", Reason.UNREADABLE_IMAGE)])["verdict"]
    assert precision == Share(None, None, None, 0)
    assert recall.value == 0.0


def test_strata_without_a_label_are_counted() -> None:
    records = [
        reviewed(0, None, size=90),
        reviewed(1, None, size=90),
        reviewed(2, "right", Reason.LOW_CONFIDENCE, size=8),
        reviewed(3, None, stratum=""),
    ]
    assert num_unseen(records) == 91


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ([], None),
        (["right"], "right"),
        (["right", "wrong"], None),
        (["right", "wrong", "wrong"], "wrong"),
        (["right"] * 2 + ["wrong"] * 2, None),
    ],
)
def test_most_people_decide(said: list[str], label: str | None) -> None:
    assert most_said(said) == label
