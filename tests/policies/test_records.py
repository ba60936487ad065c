"""Records as Arrow tables: what is read of other versions of the schema."""

from __future__ import annotations

import pyarrow as pa
import pytest

from policies.records import Reason, Record, RecordSchemaError, from_table, to_table

RECORD = Record("r1-s0-0", 1, 0, "a.png", "detail", "Ask.", 3, reasons=(Reason.UNREADABLE_IMAGE,), reason_detail="a.png: does not exist")


def in_version_2() -> pa.Table:
    return to_table([RECORD]).drop_columns(["reason_detail"]).replace_schema_metadata({"vigc_record_schema": "2"})


def test_a_record_survives_its_table() -> None:
    assert from_table(to_table([RECORD])) == [RECORD]


def test_a_table_of_the_version_before_is_read_and_its_missing_column_is_empty() -> None:
    (record,) = from_table(in_version_2())
    assert record.reasons == ("unreadable_image",)
    assert record.reason_detail == ""


@pytest.mark.parametrize("version", ["1", "3", "99"])
def test_other_versions_without_that_column_are_refused(version: str) -> None:
    with pytest.raises(RecordSchemaError, match=f"record schema {version} with columns"):
        from_table(in_version_2().replace_schema_metadata({"vigc_record_schema": version}))
