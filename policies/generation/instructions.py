"""Instructions: how a model is asked to generate (VIG) and to answer (VIC), after VIGC (arXiv 2308.12714, section 3)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Protocol

import numpy as np

from policies.checks import check_at_least
from policies.registry import Registry


class QuestionType(StrEnum):
    """LLaVA's three types of instruction data."""

    CONVERSATION = "conversation"
    DETAIL = "detail"
    COMPLEX = "complex"


class KnowledgeType(StrEnum):
    """Question types that need knowledge beside the image, with answers of a few words. They are separate from LLaVA's three, because
    neither the embedded world nor LLaVA's data has them."""

    OKVQA = "okvqa"
    AOKVQA = "aokvqa"


AnyType = QuestionType | KnowledgeType
ALL_TYPES: tuple[AnyType, ...] = (*QuestionType, *KnowledgeType)

_KNOWLEDGE_INSTRUCTION = (
    "Based on the content of the given image, generate a question that requires common sense to answer and then briefly answer it."
)
CANONICAL_INSTRUCTIONS: dict[AnyType, str] = {
    QuestionType.CONVERSATION: "Generate a question based on the content of the given image and then answer it.",
    QuestionType.DETAIL: "Generate a question to describe the image content in detail and then answer it.",
    QuestionType.COMPLEX: "Based on the given image, generate an in-depth reasoning question and then answer it.",
    KnowledgeType.OKVQA: _KNOWLEDGE_INSTRUCTION,
    KnowledgeType.AOKVQA: _KNOWLEDGE_INSTRUCTION,
}
"""The only instructions used at inference, as VIGC's published configurations have them."""

TRAINING_INSTRUCTIONS: dict[AnyType, tuple[str, ...]] = {
    QuestionType.CONVERSATION: (
        CANONICAL_INSTRUCTIONS[QuestionType.CONVERSATION],
        "Look at the image, ask a question about what it shows and then answer it.",
        "Write a question about the content of the image and then its answer.",
        "Ask something about the given image and then answer it.",
    ),
    QuestionType.DETAIL: (
        CANONICAL_INSTRUCTIONS[QuestionType.DETAIL],
        "Look at the image, ask for a detailed description and then give it.",
        "Write a question that asks for all details of the image and then its answer.",
        "Ask for a description of the given image in detail and then answer it.",
    ),
    QuestionType.COMPLEX: (
        CANONICAL_INSTRUCTIONS[QuestionType.COMPLEX],
        "Look at the image, ask a question that needs reasoning and then answer it.",
        "Write a reasoning question about the content of the image and then its answer.",
        "Ask something about the given image that requires reasoning and then answer it.",
    ),
}
"""Wordings that VIG training samples draw from, so that the model does not depend on one phrase."""

_FORM = re.compile(r"Question:(.*?)Answer:(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GeneratedPair:
    """What VIG wrote: a question and the answer it gave itself."""

    question: str
    answer: str


def vig_target(question: str, answer: str) -> str:
    """The text a VIG sample is trained to write (VIGC's form; the space before `Question:` is left to the chat template)."""
    return f"Question: {question} Answer: {answer}"


def parse_vig(text: str) -> GeneratedPair | None:
    """Question and answer of a VIG output, or None unless it holds exactly one `Question:` followed by exactly one `Answer:`."""
    if text.count("Question:") != 1 or text.count("Answer:") != 1:
        return None
    match = _FORM.search(text)
    if match is None:
        return None
    return GeneratedPair(" ".join(match[1].split()), " ".join(match[2].split()))


def vig_form(prefix: str) -> str:
    """A regular expression of the texts that continue `prefix` to a form that `parse_vig` reads, for engines with structured output.
    White space is optional: a word-level tokenizer has none."""
    return r"[^:]+Answer:[^:]+" if "Question:" in prefix else r"\s*Question:[^:]+Answer:[^:]+"


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """One thing for VIG to do: generate a question of a type, and its answer, about an image."""

    image_id: str
    question_type: AnyType
    instruction: str
    answer_prefix: str = ""
    """How the output begins, such as the first word of a knowledge question."""


class InstructionPolicy(Protocol):
    """How a model is asked to generate a question of a type."""

    def choose(self, question_type: AnyType, rng: np.random.Generator) -> str:
        """The instruction of one task."""
        ...


INSTRUCTION_POLICIES: Registry[InstructionPolicy] = Registry("instruction policy", InstructionPolicy)


@INSTRUCTION_POLICIES.register("canonical")
class CanonicalInstructions:
    """One fixed wording per type, as VIGC does at inference."""

    def choose(self, question_type: AnyType, rng: np.random.Generator) -> str:
        return CANONICAL_INSTRUCTIONS[question_type]


@INSTRUCTION_POLICIES.register("varied")
class VariedInstructions:
    """Any of the wordings that the model was trained on, drawn uniformly; the knowledge types have only one."""

    def choose(self, question_type: AnyType, rng: np.random.Generator) -> str:
        wordings = TRAINING_INSTRUCTIONS.get(question_type, (CANONICAL_INSTRUCTIONS[question_type],))
        return wordings[int(rng.integers(len(wordings)))]


def plan_tasks(
    image_ids: Sequence[str],
    type_mix: Mapping[AnyType, float] | Mapping[QuestionType, float],
    num_per_image: int,
    seed: int,
    instructions: InstructionPolicy | None = None,
    first_word: Callable[[np.random.Generator], str] | None = None,
) -> list[GenerationTask]:
    """`num_per_image` tasks for every image, in the order of `image_ids`; the same arguments give the same plan.

    The types of an image are drawn by the weights of `type_mix` (they need not sum to 1) without repeats until the types are
    used up. The types do not depend on `instructions`, which is `canonical` unless given. `first_word` draws how a question of the
    knowledge types begins; without it the model chooses.

    Raises:
        ValueError: a type is unknown, a weight negative, all weights zero, or `num_per_image` below 1.
    """
    check_at_least("num_per_image", num_per_image, 1)
    types, weights = _checked_mix(type_mix)
    wording = instructions or CanonicalInstructions()
    type_rng, wording_rng, word_rng = (np.random.default_rng([seed, stream]) for stream in range(3))

    def prefix(question_type: AnyType) -> str:
        return f"Question: {first_word(word_rng)}" if first_word and isinstance(question_type, KnowledgeType) else ""

    draws = _TypeDraws(types, weights, type_rng)
    return [
        GenerationTask(image_id, question_type, wording.choose(question_type, wording_rng), prefix(question_type))
        for image_id in image_ids
        for question_type in draws.draw(num_per_image)
    ]


def _checked_mix(type_mix: Mapping[AnyType, float] | Mapping[QuestionType, float]) -> tuple[list[AnyType], np.ndarray]:
    given = {str(name): weight for name, weight in type_mix.items()}
    known = [str(member) for member in ALL_TYPES]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"type_mix names {unknown}; expected some of {known}")
    weights = np.array([float(given.get(member, 0.0)) for member in ALL_TYPES])
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise ValueError(f"type_mix is {dict(type_mix)}; expected weights of 0 or more, at least one above 0")
    types = [member for member, weight in zip(ALL_TYPES, weights, strict=True) if weight > 0]
    positive = weights[weights > 0]
    return types, positive / positive.sum()


class _TypeDraws:
    """Draws types by weight without repeats until they are used up, with `numpy.random.Generator.choice`'s result.

    `choice` takes about 10 us a call, which is 20 s for the images of a large set.
    """

    _BLOCK = 1 << 14

    def __init__(self, types: Sequence[AnyType], weights: np.ndarray, rng: np.random.Generator) -> None:
        self._types = types
        self._weights = weights
        self._uniform = chain.from_iterable(iter(lambda: rng.random(self._BLOCK).tolist(), None))
        self._ends: dict[tuple[int, ...], list[float]] = {}

    def draw(self, num: int) -> list[AnyType]:
        """`num` types in the order in which they were drawn."""
        drawn: list[int] = []
        while len(drawn) < num:
            drawn += self._distinct(min(num - len(drawn), len(self._types)))
        return [self._types[number] for number in drawn]

    def _distinct(self, num: int) -> list[int]:
        found: list[int] = []
        while len(found) < num:
            ends = self._ends_without(tuple(found))
            found += dict.fromkeys([bisect_right(ends, next(self._uniform)) for _ in range(num - len(found))])
        return found

    def _ends_without(self, found: tuple[int, ...]) -> list[float]:
        """The cumulative weights of the types that are left, up to 1."""
        if found not in self._ends:
            left = self._weights.copy()
            left[list(found)] = 0
            ends = left.cumsum()
            self._ends[found] = (ends / ends[-1]).tolist()
        return self._ends[found]
