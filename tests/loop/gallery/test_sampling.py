"""Which records are shown, and which of their words are marked."""

from __future__ import annotations

import numpy as np
import pytest

from loop.gallery.corrections import num_changed_words, segments
from loop.gallery.sampling import RoundColumns, draw, read_columns
from loop.store.run_store import Store
from policies.records import Reason
from tests.loop.gallery.made_run import NUM_RECORDS


def columns(num: int = 1000) -> RoundColumns:
    """Two records of a rare reason among many accepted ones; the confidence rises, and one correction is large."""
    changed = np.zeros(num, np.int32)
    changed[123] = 40
    accepted = np.ones(num, bool)
    accepted[[500, 501]] = False
    confidence = np.linspace(-3, 0, num, dtype=np.float32)
    confidence[400:450] = np.nan
    return RoundColumns(accepted, confidence, changed, {"rare": np.array([500, 501])})


def test_a_small_sample_shows_every_reason_the_extremes_and_the_largest_correction() -> None:
    rows = draw(columns(), 10, seed=1).rows.tolist()
    assert len(rows) == 10
    assert {0, 999, 123} < set(rows)
    assert {500, 501} & set(rows)


def test_a_sample_is_the_same_again_ascending_and_partly_random() -> None:
    rows = draw(columns(), 100, seed=1).rows
    assert rows.tolist() == draw(columns(), 100, seed=1).rows.tolist() == sorted(set(rows.tolist()))
    assert rows.tolist() != draw(columns(), 100, seed=2).rows.tolist()
    assert np.sum((rows > 100) & (rows < 900)) > 40


def test_a_round_that_fits_is_shown_whole() -> None:
    assert draw(columns(30 + 972), 2000, seed=1).rows.tolist() == list(range(1002))


def test_columns_are_those_of_the_records(made: Store) -> None:
    found = read_columns(made, made.read_commit(1))
    assert len(found) == NUM_RECORDS + 2
    assert found.confidence[:2].tolist() == pytest.approx([-0.5, -0.495])
    assert np.isnan(found.confidence[-1])
    assert set(found.rows_by_reason) == {Reason.LOW_CONFIDENCE, Reason.ANSWERS_DISAGREE, Reason.FALSE_PREMISE, Reason.UNPARSABLE}
    assert found.rows_by_reason[Reason.UNPARSABLE].tolist() == [NUM_RECORDS + 1]
    assert np.flatnonzero(found.num_changed_words[:6]).tolist() == [1, 5]


def test_changed_words_are_marked_in_reading_order() -> None:
    found = [(one.kind, one.text) for one in segments("A red  cat sits.", "A blue cat sits there.")]
    assert found == [
        ("same", "A"), ("removed", " red"), ("added", " blue"), ("same", " cat sits"), ("added", " there"), ("same", "."),
    ]  # fmt: skip


def test_characters_without_spaces_are_compared_one_by_one() -> None:
    assert [(one.kind, one.text) for one in segments("红猫", "蓝猫")] == [("removed", "红"), ("added", "蓝"), ("same", "猫")]


@pytest.mark.parametrize(("before", "after", "num"), [("a b", "a b", 0), ("", "a b", 0), ("a a b", "a c", 2)])
def test_changed_words_are_counted_once(before: str, after: str, num: int) -> None:
    assert num_changed_words(before, after) == num


def test_what_is_shown_stands_for_all_records() -> None:
    drawn = draw(columns(), 100, seed=1)
    sizes = dict(zip(drawn.strata, drawn.stratum_sizes.tolist(), strict=True))
    extremes = drawn.strata.count("")
    assert set(sizes) == {"", "accepted", "rare"}
    assert sizes[""] == 1
    assert sizes["accepted"] + sizes["rare"] + extremes == 1000
    by_row = dict(zip(drawn.rows.tolist(), drawn.strata, strict=True))
    assert {by_row[row] for row in (0, 999, 123)} == {""}
    assert by_row[500] == by_row[501] == "rare"


def test_within_a_stratum_every_record_has_the_same_chance() -> None:
    counts = np.zeros(60)
    changed = np.zeros(60, np.int32)
    accepted = np.arange(60) % 10 > 0
    reasons = {"a": np.flatnonzero(~accepted)}
    for seed in range(2000):
        drawn = draw(RoundColumns(accepted, np.full(60, np.nan, np.float32), changed, reasons), 20, seed)
        counts[drawn.rows] += 1
        assert set(drawn.stratum_sizes.tolist()) == {6, 54}
    spread = 4 * np.sqrt(2000 * 0.25)
    assert np.ptp(counts[accepted]) < 2 * spread
    assert np.ptp(counts[~accepted]) < 2 * spread
    assert counts[~accepted].mean() > counts[accepted].mean() + spread
