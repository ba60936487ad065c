"""The evaluator: held-out questions, answered greedily and compared with the right answers: word for word, yes-or-no questions by what
is said of the two."""

from __future__ import annotations

from collections.abc import Sequence

from actors.engines.base import Engine, Request, Sampling
from actors.images import ImageSource
from actors.shards import ShardImages
from policies.metrics import exact_match, says_yes
from policies.records import HeldOutQuestion, Prediction


class Evaluator:
    """Answers questions on an engine it borrows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def evaluate(self, source: ImageSource, questions: Sequence[HeldOutQuestion], max_new_tokens: int) -> list[Prediction]:
        """One prediction per question, in order. A held-out image must be readable: a bad one raises `BadImageError`."""
        images = ShardImages(source)
        requests = [Request(images.open(item.image_id), item.question, image_key=images.key(item.image_id)) for item in questions]
        completions = self._engine.complete(requests, Sampling(max_new_tokens))
        return [
            Prediction(item.question_id, done.text, _is_right(item, done.text), done.weight_version, done.num_logprob_tokens)
            for item, done in zip(questions, completions, strict=True)
        ]


def _is_right(item: HeldOutQuestion, answer: str) -> bool:
    return says_yes(answer) == says_yes(item.answer) if item.yes_no else exact_match(answer, item.answer)
