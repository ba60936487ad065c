"""Counts of records that parts carry."""

from __future__ import annotations

import json

import pytest

from policies.counts import RecordCounts, rejections
from policies.records import Reason
from tests.policies.make import make_record


def test_correctness_compares_the_same_records_before_and_after() -> None:
    records = [
        make_record(0, original_correct=False, answer_correct=True, accepted=True),
        make_record(1, original_correct=True, answer_correct=True),
        make_record(2, original_correct=True, answer_correct=False),
        make_record(3, original_correct=False, answer_correct=False),
        make_record(4, question="", original_correct=False, answer_correct=False),
        make_record(5, original_correct=False, answer_correct=None),
        make_record(6, accepted=True),
        make_record(7, original_correct=False, answer="", answer_correct=False),
        make_record(8, original_correct=True, answer="", answer_correct=False),
    ]
    assert RecordCounts.of(records).correctness == {"correct_before": 0.5, "correct_after": 0.5, "correct_kept": 1.0}
    assert RecordCounts.of([make_record(accepted=True)]).correctness == {}


def test_reasons_are_counted_by_name() -> None:
    records = [make_record(), make_record().rejected(Reason.TOO_LONG), make_record().rejected(Reason.EMPTY, Reason.TOO_LONG)]
    assert RecordCounts.of(records).by_reason == {"rejected_empty": 1, "rejected_too_long": 2}


def test_counts_of_parts_add_up_to_those_of_all_records() -> None:
    unreadable = make_record(3, image_id="broken", reason_detail="broken: is cut off").rejected(Reason.UNREADABLE_IMAGE)
    held_out = make_record(5, image_id="copy", reason_detail="copy: the same picture as a.png").rejected(Reason.HELD_OUT_IMAGE)
    parts = [
        [make_record(0, accepted=True, original_correct=False, answer_correct=True), make_record(1).rejected(Reason.EMPTY)],
        [unreadable, held_out, make_record(4, generator_weight_version="w2", original_correct=True, answer_correct=True)],
        [],
    ]
    stored = [json.loads(json.dumps(RecordCounts.of(part).stored)) for part in parts]
    found = RecordCounts.total(map(RecordCounts.read, stored))
    assert found == RecordCounts.of([record for part in parts for record in part])
    assert (found.images, found.unreadable_images, found.unreadable_example) == (5, 1, "broken: is cut off")
    assert (found.held_out_images, found.held_out_example) == (1, "copy: the same picture as a.png")
    assert found.weight_versions == ("", "w2")


def test_counts_from_before_decontamination_are_read() -> None:
    counts = RecordCounts.of([make_record()])
    stored = {name: value for name, value in counts.stored.items() if not name.startswith("held_out")}
    assert RecordCounts.read(stored) == counts


def test_counts_of_another_version_are_refused() -> None:
    with pytest.raises(ValueError, match="counts of records hold"):
        RecordCounts.read({"generated": 3})


def test_rejections_are_read_back_from_the_counts_of_a_commit_the_most_frequent_first() -> None:
    records = [make_record(), make_record().rejected(Reason.TOO_LONG), make_record().rejected(Reason.EMPTY, Reason.TOO_LONG)]
    found = rejections({"generated": 3, "accepted": 1, **RecordCounts.of(records).by_reason})
    assert [*found.items()] == [("too_long", 2), ("empty", 1)]
