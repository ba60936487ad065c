"""How a benchmark's questions are asked and the answers stored, so that scoring finds them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.benchmarks.base import ANSWER

_SHORT_TOKENS, _LONG_TOKENS = 32, 512
_CAPTIONS = ("captions", "chair")
_LONG_ANSWERS = (*_CAPTIONS, "llava-bench", "mm-vet", "exact")
"""Benchmarks of descriptions, explanations and sentences; the others ask for a word, a phrase or a letter."""
_JUDGED = ("llava-bench", "mm-vet")
"""Benchmarks whose answers a judge has to review first."""


def default_max_new_tokens(benchmark: str) -> int:
    """Largest number of tokens in an answer."""
    return _LONG_TOKENS if benchmark in _LONG_ANSWERS else _SHORT_TOKENS


def is_scored(benchmark: str) -> bool:
    """Whether answers alone can be scored."""
    return benchmark not in _JUDGED


def prediction_record(benchmark: str, question_id: str, answers: Mapping[str, str]) -> dict[str, Any]:
    """A line of a predictions file.

    Args:
        benchmark: its name.
        question_id: of the question.
        answers: the model's text by setting.
    """
    if benchmark in _CAPTIONS:
        return {"image_id": question_id, "caption": answers[ANSWER]}
    return {"question_id": question_id, **answers}
