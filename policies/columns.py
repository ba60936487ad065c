"""Columns of a round: what a policy that looks at a whole round sees of its records.

A round may have millions of records. `Record` is for code that decides row by row, in an actor; code that decides over a round reads a
few columns as Arrow arrays instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

compute: Any = pyarrow.compute
"""Arrow's functions, which are made at import time: no type checker knows them."""

_DERIVED_FROM = ("answer", "original_answer", "short_answers")
READ_COLUMNS = ("record_id", "image_id", "question_type", "score", "answer_num_tokens")
"""Columns of the records that selection always sees."""
SELECTION_COLUMNS = (*READ_COLUMNS, "answer_words", "num_short_answers", "has_original_answer")
"""All columns that selection always sees. `answer_words` is the number of words of the answer, `has_original_answer` whether VIG
gave an answer itself."""
MIXING_COLUMNS = ("question_type", "answer_words", "num_short_answers", "has_original_answer")
"""Columns that mixing sees."""


def columns_to_read(more: Sequence[str] = ()) -> list[str]:
    """The columns of a part that `round_columns` needs, `more` included."""
    return list(dict.fromkeys(["accepted", *READ_COLUMNS, *_DERIVED_FROM, *more]))


def round_columns(records: pa.Table, more: Sequence[str] = ()) -> pa.Table:
    """`SELECTION_COLUMNS` and `more` of a table with the columns `columns_to_read(more)`, row by row."""
    derived = {
        "answer_words": num_words(records["answer"]),
        "num_short_answers": compute.list_value_length(records["short_answers"]),
        "has_original_answer": compute.greater(compute.utf8_length(compute.utf8_trim_whitespace(records["original_answer"])), 0),
    }
    found = records.select(list(dict.fromkeys([*READ_COLUMNS, *more])))
    for name, column in derived.items():
        found = found.append_column(name, column)
    return found.replace_schema_metadata(None)


def mean_logprobs(records: pa.Table, of: str) -> np.ndarray:
    """Mean log-probability per token (nats) of what the columns `{of}_logprob` and `{of}_num_tokens` are about, NaN where it was not
    measured: [rows], float64."""
    summed = records[f"{of}_logprob"].to_numpy().astype(float)
    num_tokens = records[f"{of}_num_tokens"].to_numpy()
    return np.divide(summed, num_tokens, out=np.full(len(summed), np.nan), where=num_tokens > 0)


def num_words(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Number of words of each text, split at white space: int32."""
    trimmed = compute.utf8_trim_whitespace(texts)
    counts = compute.list_value_length(compute.utf8_split_whitespace(trimmed))
    return compute.if_else(compute.equal(compute.utf8_length(trimmed), 0), pa.scalar(0, pa.int32()), counts)
