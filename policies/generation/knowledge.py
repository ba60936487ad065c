"""Knowledge questions (OK-VQA and A-OKVQA), after VIGC's `vqg_test` task: the question from its first word on, then short answers.

Without guidance a model nearly always asks `What`. VIGC draws the first word from a training set's frequencies, takes several short
answers, weighs each by its probability, and leaves it to the reader of the data to draw one of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from policies.generation.instructions import KnowledgeType, parse_vig
from policies.metrics import normalise
from policies.records import TrainingSample

VQA_PROMPT = "Question: {question} Short answer:"
"""Prompt for a question of the knowledge types (VIC)."""

_KNOWLEDGE_TYPES = frozenset(map(str, KnowledgeType))


@dataclass(frozen=True, slots=True)
class ShortAnswer:
    """An answer with its mean log-probability per token (nats)."""

    text: str
    mean_logprob: float

    @property
    def weight(self) -> float:
        """VIGC's: the cubed mean token probability, on a scale of 0..100."""
        return math.exp(self.mean_logprob) ** 3 * 100


@dataclass(frozen=True)
class FirstWords:
    """First words of questions with their counts, most frequent first."""

    counts: tuple[tuple[str, int], ...]

    def draw(self, rng: np.random.Generator) -> str:
        """A first word by its frequency."""
        words, counts = zip(*self.counts, strict=True)
        shares = np.array(counts, dtype=float) / sum(counts)
        return words[int(rng.choice(len(words), p=shares))]


def count_first_words(questions: Iterable[str]) -> FirstWords:
    """Count the first words of questions.

    Raises:
        ValueError: there are none.
    """
    counts = Counter(match[0] for question in questions if (match := re.search(r"\w+", question)))
    if not counts:
        raise ValueError("there is no question to count first words of; expected training samples with questions")
    return FirstWords(tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def questions_of(samples: Sequence[TrainingSample]) -> list[str]:
    """The questions of VIG and VIC samples; only those of the knowledge types, if there are any."""
    own = [sample for sample in samples if is_knowledge(sample.question_type)]
    return [question for sample in own or samples for question, _ in pairs_of(sample)]


def pairs_of(sample: TrainingSample) -> list[tuple[str, str]]:
    """The questions and answers of a VIG or VIC sample."""
    return [(pair.question, pair.answer) if (pair := parse_vig(answer)) else (_asked(prompt), answer) for prompt, answer in sample.turns]


def _asked(prompt: str) -> str:
    """The question in a VIC prompt, whichever type it is of."""
    before, after = VQA_PROMPT.split("{question}")
    return prompt.removeprefix(before).removesuffix(after)


def is_knowledge(question_type: str) -> bool:
    """Whether a question type is one of those whose answers are a few words."""
    return question_type in _KNOWLEDGE_TYPES


def vic_prompt(question_type: str, question: str) -> str:
    """The prompt for a question: the question alone, for the knowledge types with the request to be short."""
    return VQA_PROMPT.format(question=question) if is_knowledge(question_type) else question


def ranked(answers: Iterable[ShortAnswer]) -> list[ShortAnswer]:
    """Distinct answers (after `normalise`) by descending weight; empty ones are left out, of equal ones the heaviest is kept."""
    kept: dict[str, ShortAnswer] = {}
    for answer in sorted(answers, key=lambda one: -one.mean_logprob):
        if normalise(answer.text):
            kept.setdefault(normalise(answer.text), answer)
    return list(kept.values())


def drawn_answer(answer: str, short_answers: Sequence[str], weights: Sequence[float], draw: float) -> str:
    """The answer of a VIC sample: the short answer that a `draw` in 0..1 picks by weight; `answer` if there are none."""
    if not short_answers:
        return answer
    ends = np.cumsum(weights)
    return short_answers[int(np.searchsorted(ends / ends[-1], draw, side="right"))]
