"""Convert predictions to and from the table that a round stores.

A run whose sets are all scored by `exact` stores right and wrong in a column `correct`, as runs did before there were metrics, so that
digests stay comparable. Any other run stores `score` and `metric`, under a newer schema version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa

from policies.records import Prediction, RecordSchemaError

PREDICTION_SCHEMA_VERSION = 2
Predictions = dict[str, list[Prediction]]
"""`held_out/NAME` and `acceptance/NAME` -> one prediction per question."""

_EXACT = "exact"
_VERSION_KEY = b"vigc_prediction_schema"
PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("weight_version", pa.string(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
    ],
    metadata={_VERSION_KEY: str(PREDICTION_SCHEMA_VERSION)},
)
_FIRST_COLUMNS = ["set", "question_id", "answer", "correct", "weight_version", "num_tokens"]


def to_table(predictions: Mapping[str, Sequence[Prediction]], metrics: Mapping[str, str]) -> pa.Table:
    """One row per prediction, set by set.

    Args:
        predictions: by set.
        metrics: name of each set's metric.
    """
    rows = [{"set": name, **asdict(one), "correct": one.correct, "metric": metrics[name]} for name, of in predictions.items() for one in of]
    if set(metrics.values()) == {_EXACT}:
        return pa.Table.from_pylist([{name: row[name] for name in _FIRST_COLUMNS} for row in rows])
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


def from_table(table: pa.Table) -> tuple[Predictions, dict[str, str]]:
    """Predictions by set, in the order of the questions, and the metric that each set was scored by.

    Raises:
        RecordSchemaError: the table is of another version.
    """
    version = prediction_version(table)
    columns = _FIRST_COLUMNS if version == "1" else PREDICTION_SCHEMA.names
    if version not in ("1", str(PREDICTION_SCHEMA_VERSION)) or table.schema.names != columns:
        raise RecordSchemaError(
            f"prediction schema {version} with columns {table.schema.names}; this version reads schemas 1 and {PREDICTION_SCHEMA_VERSION}"
        )
    found: Predictions = {}
    metrics: dict[str, str] = {}
    for row in table.to_pylist():
        name = row.pop("set")
        metrics[name] = row.pop("metric", _EXACT)
        score = float(row.pop("correct")) if version == "1" else row.pop("score")
        found.setdefault(name, []).append(Prediction(score=score, **row))
    return found, metrics


def prediction_version(table: pa.Table) -> str:
    """The version of a table's schema; the first version did not state it."""
    return (table.schema.metadata or {}).get(_VERSION_KEY, b"1").decode(errors="replace")
