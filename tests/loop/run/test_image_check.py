"""A round that could read none of its images ends the run, and its shards are made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loop.errors import NoReadableImageError
from loop.run.stages.image_check import check_images
from loop.store.run_store import RunInfo, Store
from policies.counts import RecordCounts
from policies.records import Reason, Record, to_table

BAD = Record(
    "r1-s0-0", 1, 0, "a.png", "detail", "Ask.", 3, reasons=(Reason.UNREADABLE_IMAGE,), reason_detail="a.png: does not exist"
)  # fmt: skip
GOOD = replace(BAD, record_id="r1-s0-1", image_id="b.png", reasons=(), reason_detail="", accepted=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "run", RunInfo(run_id="x", config={})).locked() as store:
        yield store


def test_images_that_are_set_aside_are_a_finding_with_an_example(store: Store) -> None:
    (finding,) = check_images(store, 1, RecordCounts.of([BAD, GOOD, BAD]), ["records-00000"])
    assert (finding.kind, finding.count, finding.example) == ("unreadable_images", 1, "a.png: does not exist")
    assert "of the round's 2 images cannot be read" in finding.message
    assert check_images(store, 1, RecordCounts.of([GOOD]), ["records-00000"]) == []


def test_tested_images_are_a_finding_of_their_own(store: Store) -> None:
    held_out = replace(BAD, image_id="c.png", reasons=(Reason.HELD_OUT_IMAGE,), reason_detail="c.png: the same picture as d.png")
    unreadable, copied = check_images(store, 1, RecordCounts.of([BAD, held_out, held_out]), ["records-00000"])
    assert (unreadable.kind, unreadable.count) == ("unreadable_images", 1)
    assert (copied.kind, copied.count, copied.example) == ("held_out_images", 1, "c.png: the same picture as d.png")
    assert copied.message.startswith("of the round's 2 images are images of held-out or acceptance sets")


def test_a_round_without_a_readable_image_ends_the_run_and_its_shards_are_made_again(store: Store) -> None:
    store.write_part(1, "records-00000", to_table([BAD, BAD]))
    store.write_part(1, "selected", to_table([]))
    with pytest.raises(NoReadableImageError, match=r"round 1: none of its 1 images could be read .* a\.png: does not exist; .*vigc resume"):
        check_images(store, 1, RecordCounts.of([BAD, BAD]), ["records-00000", "selected"])
    assert [store.finished_part(1, name) for name in ("records-00000", "selected")] == [None, None]
