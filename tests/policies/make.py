"""Records for tests of policies: a good one, to be spoilt field by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from policies.generation.instructions import CANONICAL_INSTRUCTIONS, QuestionType, vig_target
from policies.records import Record


def make_record(index: int = 0, **changes: Any) -> Record:
    """A record that every filter keeps, with `changes`."""
    question, answer = "What is beside the red ring?", "The red ring is at the center."
    record = Record(
        record_id=f"r1-s0-{index}",
        round=1,
        shard=0,
        image_id=f"image-{index}",
        question_type="conversation",
        instruction=CANONICAL_INSTRUCTIONS[QuestionType.CONVERSATION],
        seed=7,
        generated_text=vig_target(question, answer),
        question=question,
        original_answer=answer,
        generated_logprob=-0.1,
        generated_num_tokens=20,
        refuted_premises=(),
        answer=answer,
        sentences=(answer,),
        sentence_gains=(1.1,),
        answer_logprob=-0.08,
        answer_num_tokens=8,
        view_answers=(answer, answer),
        agreement=1.0,
        view_description="There is a small red ring beside a blue star.",
        blank_logprob=-9.0,
    )
    return replace(record, **changes)
