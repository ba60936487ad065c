"""Pairs of answers: where correction changed what VIG had answered, the original answer is rejected and the corrected one chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from policies.columns import mean_logprobs
from policies.generation.knowledge import vic_prompt
from policies.metrics import normalise, share
from policies.records import TrainingSample
from policies.training.objectives import Dpo

TEXT_COLUMNS = ("record_id", "image_id", "question_type", "question", "original_answer", "answer")
"""Columns of the records that make pairs."""
EVIDENCE_COLUMNS = ("view_answers", "answer_logprob", "answer_num_tokens", "generated_logprob", "generated_num_tokens")
"""Columns of the records that speak for one answer or the other."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a question about an image."""

    record_id: str
    image_id: str
    question_type: str
    prompt: str
    chosen: str
    rejected: str

    @property
    def samples(self) -> tuple[TrainingSample, TrainingSample]:
        """The conversations with the chosen and with the rejected answer."""
        chosen, rejected = (
            TrainingSample(self.image_id, ((self.prompt, answer),), self.record_id, self.question_type)
            for answer in (self.chosen, self.rejected)
        )
        return chosen, rejected


def pairs_of(records: pa.Table) -> Iterator[Pair]:
    """The pairs of records with `TEXT_COLUMNS`, one for each."""
    columns = [records[name].to_pylist() for name in TEXT_COLUMNS]
    for record_id, image_id, question_type, question, original, answer in zip(*columns, strict=True):
        yield Pair(record_id, image_id, question_type, vic_prompt(question_type, question), answer, original)


def is_changed(records: pa.Table) -> np.ndarray:
    """Which of the records with `TEXT_COLUMNS` have two answers that differ after `normalise`: [rows], bool."""
    answers = zip(records["original_answer"].to_pylist(), records["answer"].to_pylist(), strict=True)
    normalised = ((normalise(original), normalise(answer)) for original, answer in answers)
    return np.array([bool(original and answer) and original != answer for original, answer in normalised], dtype=bool)


def is_evident(records: pa.Table, dpo: Dpo) -> np.ndarray:
    """For which of the records with `TEXT_COLUMNS` and `EVIDENCE_COLUMNS` the evidence for the corrected answer exceeds that for the
    original one by what `dpo` asks for: [rows], bool. A record that lacks a measurement has no evidence."""
    evident = np.ones(records.num_rows, dtype=bool)
    if dpo.min_agreement_gain is not None:
        columns = (records[name].to_pylist() for name in ("original_answer", "answer", "view_answers"))
        gains = [_agreement_gain(*row) for row in zip(*columns, strict=True)]
        evident &= np.array(gains, dtype=float) >= dpo.min_agreement_gain  # NaN is not
    if dpo.min_logprob_gain is not None:
        evident &= mean_logprobs(records, "answer") - mean_logprobs(records, "generated") >= dpo.min_logprob_gain
    return evident


def _agreement_gain(original: str, answer: str, views: Sequence[str]) -> float:
    """NaN without views."""
    said = [normalise(view) for view in views]
    return share(view == normalise(answer) for view in said) - share(view == normalise(original) for view in said) if said else np.nan
