"""The record: one question and answer about one image, with everything needed to trace its origin.

Records travel between actors as Arrow tables of `RECORD_SCHEMA`; `Record` is one row, for code that decides row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, get_args, get_type_hints

import pyarrow as pa

SCHEMA_VERSION = 3
_ADDED = {"2": ("reason_detail",)}
"""Columns that tables of an older version lack, by version; they get their default."""


IMAGE_MARK = "<image>"
"""Marks the place of each image in the turns of a `TrainingSample` about several images."""

EXPORTED_IMAGE = "image"
"""Column that an export adds to the records."""

DUPLICATE_KEYS = "duplicate_keys"
"""Column beside the records of a part, see `policies.filtering.stored_keys`. It is not a field of `Record`."""
_BESIDE = (EXPORTED_IMAGE, DUPLICATE_KEYS)


class RecordSchemaError(ValueError):
    """A table does not have this version's record schema."""


REASON_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
"""Valid names of reject reasons, which are keys of counts, tables and MLflow."""


class Reason(StrEnum):
    """Why a record was rejected; a record may have several. A user-defined filter may add others by its `reasons`."""

    UNREADABLE_IMAGE = "unreadable_image"
    HELD_OUT_IMAGE = "held_out_image"
    HELD_OUT_QUESTION = "held_out_question"
    UNPARSABLE = "unparsable"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    ANSWERS_DISAGREE = "answers_disagree"
    LOW_CONFIDENCE = "low_confidence"
    IMAGE_INDEPENDENT = "image_independent"
    UNGROUNDED = "ungrounded"
    FALSE_PREMISE = "false_premise"
    NO_BASIS = "no_basis"
    USER_POLICY = "user_policy"


@dataclass(frozen=True, slots=True)
class Record:
    """One row. Log-probabilities are natural, summed over tokens; `None` means not measured."""

    record_id: str
    """`r{round}-s{shard}-{index}`: unique within a run, and the same if the shard is generated again."""
    round: int
    shard: int
    image_id: str
    question_type: str
    instruction: str
    seed: int
    """Seed of the shard that made the record."""
    generated_text: str = ""
    """What VIG wrote, unparsed."""
    question: str = ""
    original_answer: str = ""
    """The answer VIG gave itself."""
    generated_logprob: float | None = None
    generated_num_tokens: int = 0
    premise_answers: tuple[str, ...] = ()
    """Questions about the objects that the question names, each with the reply."""
    refuted_premises: tuple[str, ...] | None = None
    """The objects that are missing or not unique according to the reply; a question with such an object is not answered."""
    answer: str = ""
    """The corrected answer: `sentences` joined by a space."""
    sentences: tuple[str, ...] = ()
    sentence_logprobs: tuple[float, ...] = ()
    """Summed log-probability of each corrected sentence."""
    sentence_gains: tuple[float, ...] = ()
    """What the image adds to each corrected sentence, nats per token: the mean log-probability less that on a blank image."""
    num_dropped_sentences: int = 0
    """Sentences that were generated but dropped, because the image did not support them."""
    answer_logprob: float | None = None
    answer_num_tokens: int = 0
    short_answers: tuple[str, ...] = ()
    """All answers to a question of the knowledge types, by descending weight."""
    short_answer_weights: tuple[float, ...] = ()
    """Weight of each, 0..100: see `policies.generation.knowledge.ShortAnswer`."""
    view_answers: tuple[str, ...] = ()
    """The answers on perturbed views of the image, one per view."""
    agreement: float | None = None
    """Share of `view_answers` that say the same as `answer`."""
    view_description: str = ""
    """The model's own description of the image, when the corrector asked for one."""
    blank_logprob: float | None = None
    """Summed log-probability of `answer` on a blank image: the baseline for what the image adds."""
    generator_weight_version: str = ""
    corrector_weight_version: str = ""
    accepted: bool = False
    reasons: tuple[str, ...] = ()
    """Names of reasons, those of `Reason` or a filter's own, in the order of the filter chain. Empty for an accepted record."""
    reason_detail: str = ""
    """Details of a reason, such as what is wrong with an unreadable image. Never contains a local path."""
    score: float | None = None
    """What selection ranks by; higher is better."""
    original_correct: bool | None = None
    """Whether `original_answer` is right: known only if the world knows the truth, and never shown to policies that decide."""
    answer_correct: bool | None = None
    """Whether `answer` is right, likewise."""
    trained_on: bool = False
    """Whether selection took the record into the training set of its round."""

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability per token of the corrected answer."""
        if self.answer_logprob is None or self.answer_num_tokens == 0:
            return None
        return self.answer_logprob / self.answer_num_tokens

    def rejected(self, *reasons: str) -> Record:
        """This record with more reasons against it."""
        return replace(self, accepted=False, reasons=(*self.reasons, *reasons))

    def as_generated(self) -> Record:
        """This record as generation left it, before correction and filters."""
        generated = Record(**{name: getattr(self, name) for name in _GENERATED})
        if not self.question and {Reason.UNREADABLE_IMAGE, Reason.HELD_OUT_IMAGE} & set(self.reasons):
            return replace(generated, reasons=self.reasons, reason_detail=self.reason_detail)
        return generated


_GENERATED = (
    "record_id", "round", "shard", "image_id", "question_type", "instruction", "seed", "generated_text", "question", "original_answer",
    "generated_logprob", "generated_num_tokens", "generator_weight_version",
)  # fmt: skip
"""Fields that generation sets. Images that are set aside also have a reason."""

_ARROW_TYPES: Mapping[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int32(),
    float: pa.float64(),
    bool: pa.bool_(),
    tuple[str, ...]: pa.list_(pa.string()),
    tuple[float, ...]: pa.list_(pa.float64()),
}
_WIDE_FIELDS = ("seed",)
"""Integers of 64 bits."""


def _arrow_field(name: str, hint: Any) -> pa.Field:
    """A field of `Record` as a column, which is nullable where the field may be None."""
    kind = _ARROW_TYPES[hint if hint in _ARROW_TYPES else get_args(hint)[0]]
    return pa.field(name, pa.int64() if name in _WIDE_FIELDS else kind, nullable=hint not in _ARROW_TYPES)


RECORD_SCHEMA = pa.schema(
    [_arrow_field(name, hint) for name, hint in get_type_hints(Record).items()],
    metadata={"vigc_record_schema": str(SCHEMA_VERSION)},
)

_LISTS = tuple(field_.name for field_ in RECORD_SCHEMA if pa.types.is_list(field_.type))


def to_table(records: Iterable[Record]) -> pa.Table:
    """Records as one Arrow table of `RECORD_SCHEMA`."""
    rows = list(records)
    columns = [pa.array([getattr(row, column.name) for row in rows], column.type) for column in RECORD_SCHEMA]
    return pa.Table.from_arrays(columns, schema=RECORD_SCHEMA)


def from_table(table: pa.Table) -> list[Record]:
    """Rows of a table as records.

    Raises:
        RecordSchemaError: the table has neither this version's schema nor an older one that is still read.
    """
    names = [name for name in RECORD_SCHEMA.names if name not in _ADDED.get(record_version(table), ())]
    if [name for name in table.schema.names if name not in _BESIDE] != names:
        raise _foreign(table)
    return [Record(**_tuples(row)) for row in columns_of(table, names).to_pylist()]


def columns_of(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Columns of records, in the order of `names`. Those that an older version lacks have their default.

    Raises:
        RecordSchemaError: the table has another schema, or a column has the wrong type.
    """
    version = record_version(table)
    if version not in (str(SCHEMA_VERSION), *_ADDED):
        raise _foreign(table)
    for name in names:
        if name in _ADDED.get(version, ()):
            table = table.append_column(RECORD_SCHEMA.field(name), pa.array([""] * table.num_rows, pa.string()))
        elif name not in table.schema.names:
            raise _foreign(table)
        if name in _BESIDE:
            continue
        wanted, column = RECORD_SCHEMA.field(name), table.column(name)
        if column.type != wanted.type or (column.null_count and not wanted.nullable):
            raise RecordSchemaError(f"column {name} is {column.type} with {column.null_count} nulls; expected {wanted}")
    return table.select(list(names))


def _foreign(table: pa.Table) -> RecordSchemaError:
    return RecordSchemaError(
        f"record schema {record_version(table)} with columns {table.schema.names}; this version reads schema {SCHEMA_VERSION}"
    )


def record_version(table: pa.Table) -> str:
    """The version of a table's schema; `none` if it does not state one."""
    return (table.schema.metadata or {}).get(b"vigc_record_schema", b"none").decode(errors="replace")


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{name: tuple(row[name]) for name in _LISTS if row[name] is not None}}


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One conversation about one image, several or none, the input of the trainer."""

    image_id: str
    """The image, the first of several; empty if there is none."""
    turns: tuple[tuple[str, str], ...]
    """`(user, assistant)` pairs; the loss is on the assistant's text and its end token only. An empty user text in the first pair stands
    for the image alone. If there are several images, each has an `IMAGE_MARK` in the user's texts, in order; a single one comes first."""
    origin: str = "seed"
    """`seed` or the `record_id` it was made from."""
    question_type: str = ""
    further_images: tuple[str, ...] = ()
    """Ids of the second image and those after it."""

    @property
    def images(self) -> tuple[str, ...]:
        """Ids of all images, in order."""
        return (self.image_id, *self.further_images) if self.image_id else ()


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """One question with its right answer, for evaluation."""

    question_id: str
    image_id: str
    question: str
    answer: str
    """The reference answer; the most frequent one of several."""
    question_type: str = ""
    answers: tuple[str, ...] = ()
    """The answers of several people; empty if `answer` is the only reference."""
    choices: tuple[str, ...] = ()
    """The choices, if the record lists them beside the question."""
    right_choice: str = ""
    """The right one of `choices`, if `answer` is something else."""

    @property
    def references(self) -> tuple[str, ...]:
        """All answers that count as right."""
        return self.answers or (self.answer,)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to a held-out question."""

    question_id: str
    answer: str
    score: float | None
    """By the set's metric, 0..1, higher is better; None if a judge gave no verdict."""
    weight_version: str
    num_tokens: int = field(default=0)

    @property
    def correct(self) -> bool:
        """Whether it is completely right."""
        return self.score == 1.0
