"""The records of a round that MLflow shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from loop.monitors.mirroring import sample_of
from loop.store.commits import FileEntry
from loop.store.documents import PartReceipt
from loop.store.run_store import Store
from loop.store.selected import accepted_columns, index_of
from policies.records import Reason, to_table
from tests.loop.store.make_run import commit_of
from tests.policies.make import make_record


def test_a_sample_reads_no_more_parts_than_it_needs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [make_record(number, accepted=True) for number in range(8)]
    bad = [replace(make_record(number), record_id=f"bad-{number}").rejected(Reason.EMPTY) for number in range(4)]
    tables = [to_table([*good[2 * number : 2 * number + 2], bad[number]]) for number in range(4)]
    parts = [store.write_part(0, f"records-{number:05d}", table) for number, table in enumerate(tables)]
    parts.append(store.write_part(0, "selected", index_of(accepted_columns(store, parts[:1], ()))))
    commit = commit_of(store, files=[part.entry for part in parts]).model_copy(update={"counts": {"generated": 12, "accepted": 8}})
    opened: list[str] = []
    real = Store.read_record_columns

    def counted(self: Store, part: PartReceipt | FileEntry, columns: Sequence[str]) -> object:
        opened.append(part.path)
        return real(self, part, columns)

    monkeypatch.setattr(Store, "read_record_columns", counted)
    accepted, rejected = sample_of(store, commit, 2)
    assert accepted == [replace(record, trained_on=True) for record in good[:2]]
    assert rejected == bad[:2]
    assert len(opened) == 2
    few = commit.model_copy(update={"counts": {"generated": 12, "accepted": 0}})
    assert [len(records) for records in sample_of(store, few, 1)] == [0, 1]
    assert sample_of(store, commit.model_copy(update={"counts": {}}), 5) == ([], [])
