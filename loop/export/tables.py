"""Write the formats of an export that are Parquet, with images inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loop.config.training_config import TrainingConfig
from loop.export.pictures import Picture
from loop.export.rows import Batch, Rows, counts_of
from loop.export.writers import COLUMNS, ExportCounts
from policies.records import EXPORTED_IMAGE, RECORD_SCHEMA
from policies.training.pairs import EVIDENCE_COLUMNS, TEXT_COLUMNS, Pair, is_changed, is_evident, pairs_of

DATA_PARQUET = "data.parquet"
_ROWS_PER_GROUP = 1000
_IMAGE_BYTES_PER_GROUP = 32 << 20
"""Limits of a Parquet row group: streaming readers hold one, images included, in memory; small ones take longer to write and read."""

_TEXT = {"dtype": "string", "_type": "Value"}
_MESSAGES = [{"role": _TEXT, "content": [{"type": _TEXT, "text": _TEXT}]}]
_CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))


def _chat_schema(columns: Sequence[str]) -> pa.Schema:
    """Columns of chat messages, and then the images, `id` and `type` of a record."""
    features = {**dict.fromkeys(columns, _MESSAGES), "images": [{"_type": "Image"}], "id": _TEXT, "type": _TEXT}
    return pa.schema(
        [
            *((name, pa.list_(pa.struct([("role", pa.string()), ("content", _CONTENT)]))) for name in columns),
            ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
            ("id", pa.string()),
            ("type", pa.string()),
        ],
        # Without the features of `datasets` in the metadata, load_dataset("parquet") shows structs of bytes instead of images.
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


MESSAGES_SCHEMA = _chat_schema(("messages",))
PAIRS_SCHEMA = _chat_schema(("prompt", "chosen", "rejected"))


def _feature(kind: pa.DataType) -> Any:
    """A type of `RECORD_SCHEMA` as `datasets` writes it."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


PARQUET_SCHEMA = RECORD_SCHEMA.append(pa.field(EXPORTED_IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))).with_metadata(
    {
        **RECORD_SCHEMA.metadata,
        "huggingface": json.dumps(
            {"info": {"features": {**{one.name: _feature(one.type) for one in RECORD_SCHEMA}, EXPORTED_IMAGE: {"_type": "Image"}}}}
        ),
    }
)


def write_messages(rows: Rows, file: Path, counts: ExportCounts, shard_size: int | None = None) -> None:
    """Parquet of `MESSAGES_SCHEMA`."""
    with closing(_ParquetFiles(file, MESSAGES_SCHEMA, shard_size)) as files, closing(rows.batches(COLUMNS)) as batches:
        for batch in batches:
            written = []
            for row, picture in zip(batch.rows(), batch.pictures, strict=True):
                if picture is not None:
                    counts.add(batch.round, row["question_type"])
                    written.append(_messages_row(row, picture))
            files.write(pa.Table.from_pylist(written, schema=MESSAGES_SCHEMA), _num_bytes(batch))


def write_trl_dpo(rows: Rows, file: Path, counts: ExportCounts, shard_size: int | None = None) -> None:
    """Parquet of `PAIRS_SCHEMA`: the pairs of accepted records. A run with the objective `dpo` exports those whose evidence it trusts,
    any other run all."""
    dpo = TrainingConfig.model_validate(rows.lineage.run.config.get("training", {})).dpo

    def is_pair(records: pa.Table) -> np.ndarray:
        return is_changed(records) if dpo is None else is_changed(records) & is_evident(records, dpo)

    batches = rows.batches((*TEXT_COLUMNS, *EVIDENCE_COLUMNS), mask=is_pair)
    with closing(_ParquetFiles(file, PAIRS_SCHEMA, shard_size)) as files, closing(batches):
        for batch in batches:
            written = []
            for pair, picture in zip(pairs_of(batch.table), batch.pictures, strict=True):
                if picture is not None:
                    counts.add(batch.round, pair.question_type)
                    written.append(_pair_row(pair, picture))
            files.write(pa.Table.from_pylist(written, schema=PAIRS_SCHEMA), _num_bytes(batch))


def write_parquet(rows: Rows, file: Path, counts: ExportCounts, shard_size: int | None = None) -> None:
    """Parquet of all records with their images; one that cannot be read is null."""
    with (
        closing(_ParquetFiles(file, PARQUET_SCHEMA, shard_size)) as files,
        closing(rows.batches(RECORD_SCHEMA.names, accepted_only=False)) as batches,
    ):
        for batch in batches:
            counts.types.update(counts_of(batch.table["question_type"]))
            counts.rounds[batch.round] += batch.table.num_rows
            files.write(_with_images(batch), _num_bytes(batch))


def _num_bytes(batch: Batch) -> int:
    """Bytes of its images."""
    return sum(len(picture.data) for picture in batch.pictures if picture is not None)


def _with_images(batch: Batch) -> pa.Table:
    image = PARQUET_SCHEMA.field(EXPORTED_IMAGE)
    cells = [None if picture is None else _image_cell(picture) for picture in batch.pictures]
    return batch.table.append_column(image, pa.array(cells, image.type)).replace_schema_metadata(PARQUET_SCHEMA.metadata)


def _messages_row(row: dict[str, Any], picture: Picture) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, _text(row["question"])]},
            {"role": "assistant", "content": [_text(row["answer"])]},
        ],
        "images": [_image_cell(picture)],
        "id": row["record_id"],
        "type": row["question_type"],
    }


def _pair_row(pair: Pair, picture: Picture) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": [{"type": "image"}, _text(pair.prompt)]}],
        "chosen": [{"role": "assistant", "content": [_text(pair.chosen)]}],
        "rejected": [{"role": "assistant", "content": [_text(pair.rejected)]}],
        "images": [_image_cell(picture)],
        "id": pair.record_id,
        "type": pair.question_type,
    }


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _image_cell(picture: Picture) -> dict[str, Any]:
    return {"bytes": picture.data, "path": picture.name}


class _ParquetFiles:
    """One Parquet file, or files `NAME-00000.parquet` and so on of `shard_size` rows each."""

    def __init__(self, file: Path, schema: pa.Schema, shard_size: int | None) -> None:
        self._file = file
        self._schema = schema
        self._shard_size = shard_size
        self._number, self._room = 0, shard_size
        self._writer: pq.ParquetWriter | None = None
        self._group: list[pa.Table] = []
        self._num_rows, self._num_image_bytes = 0, 0

    def write(self, table: pa.Table, num_image_bytes: int) -> None:
        """Append rows. They are written once they fill a row group or a file."""
        self._num_image_bytes += num_image_bytes
        while table.num_rows:
            part = table.slice(0, self._room)
            table = table.slice(part.num_rows)
            self._group.append(part)
            self._num_rows += part.num_rows
            if self._room is not None:
                self._room -= part.num_rows
            if self._room == 0:
                self.close()
        if self._num_rows >= _ROWS_PER_GROUP or self._num_image_bytes >= _IMAGE_BYTES_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left, and finish the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._room = None, self._shard_size

    def _flush(self) -> None:
        """Write a row group, of one chunk: its bytes then do not depend on how the rows arrived."""
        if self._num_rows:
            self._open().write_table(pa.concat_tables(self._group).combine_chunks())
        self._group, self._num_rows, self._num_image_bytes = [], 0, 0

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            name = self._file.name if self._shard_size is None else f"{self._file.stem}-{self._number:05d}{self._file.suffix}"
            self._writer = pq.ParquetWriter(self._file.with_name(name), self._schema, compression="zstd", write_page_checksum=True)
            self._number += 1
        return self._writer
