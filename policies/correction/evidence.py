"""Evidence: what the corrector asks and measures beside the answer itself, as input of filters and selection."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.checks import any_of, check_at_least, check_share
from policies.correction.premises import QUESTIONS, REFUTATIONS, check_templates


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Options that the correction policies share.

    Options:
        num_views: additional independent answers, each on its own perturbed view of the image.
        view_noise: standard deviation of the pixel noise of a view, on a scale where pixels are 0..1.
        view_shift: distance by which a view is moved in a random direction, as a share of the image's shorter side. A model that
            is only guessing changes its mind with the patch grid.
        view_transforms: further random changes of a view, such as of scale, angle and color: classes of `torchvision.transforms.v2`, each
            as {NAME: {ARGUMENT: VALUE}}.
        view_temperature: sampling temperature of the answers on the views; 0 is greedy.
        describe: ask the model once for its own description of each image, by `describe_prompt`.
        measure_blank: also score the answer on a blank image.
        check_premises: ask about every object that a question names before answering it; a question with a refuted premise is not
            answered. The filter `premise` rejects it and belongs before `length` in the chain.
        premise_questions: how to ask about a phrase: `{phrase}`, `{a phrase}` or `{phrases}` stand for it.
        premise_refutations: regular expressions of replies that refute a premise: there is no such object, or more than one.
        max_question_words: a longer question is not asked; its record is `too_long`.
        max_new_tokens: token budget of one pass, of one view's answer and of the description.
    """

    num_views: int = 2
    view_noise: float = 0.06
    view_shift: float = 0.02
    view_transforms: Sequence[Mapping[str, Any]] = ()
    view_temperature: float = 0.0
    describe: bool = True
    describe_prompt: str = "Describe the image in detail."
    measure_blank: bool = True
    check_premises: bool = False
    premise_questions: Sequence[str] = QUESTIONS
    premise_refutations: Sequence[str] = REFUTATIONS
    max_question_words: int = 200
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        check_at_least("num_views", self.num_views, 0)
        check_share("view_noise", self.view_noise)
        check_share("view_shift", self.view_shift)
        check_at_least("view_temperature", self.view_temperature, 0.0)
        check_at_least("max_question_words", self.max_question_words, 1)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        if self.num_views and not self.views_differ:
            raise ValueError(f"num_views is {self.num_views} with view_noise and view_shift 0; expected one above 0: equal views agree")
        if self.describe and not self.describe_prompt.strip():
            raise ValueError("describe is on with an empty describe_prompt; expected a prompt, or describe off")
        check_templates("premise_questions", self.premise_questions)
        self.refutation()

    @property
    def pictures_differ(self) -> bool:
        """Whether a view can differ from the image."""
        return bool(self.view_noise or self.view_shift or self.view_transforms)

    @property
    def views_differ(self) -> bool:
        """Whether a view, or what is sampled on it, can differ from the image's own."""
        return self.pictures_differ or self.view_temperature > 0

    def refutation(self) -> re.Pattern[str]:
        """One pattern that finds a reply that refutes a premise."""
        return any_of("premise_refutations", self.premise_refutations)
