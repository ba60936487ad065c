"""The evaluator: answers held-out questions greedily and scores them with their set's metric."""

from __future__ import annotations

from collections.abc import Sequence

from actors.engines.base import Engine, Request, Sampling
from actors.images import ImageSource
from actors.shards import ShardImages
from policies.records import HeldOutQuestion, Prediction
from policies.scoring.answer_metrics import AnswerMetric, Exact, Judge, Likelihood

EXACT = Exact()
"""The metric when nobody needs the scores: it adds nothing to the question."""


class Evaluator:
    """Answers questions on an engine it borrows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def evaluate(
        self, source: ImageSource, questions: Sequence[HeldOutQuestion], max_new_tokens: int, metric: AnswerMetric = EXACT
    ) -> list[Prediction]:
        """One prediction per question, in order; unscored if the metric is a judge, which is asked later, once all answers are in.

        Raises:
            BadImageError: a held-out image cannot be read.
        """
        images = ShardImages(source)
        requests = [Request(images.image(item.image_id), metric.prompt(item), image_key=images.key(item.image_id)) for item in questions]
        completions = self._engine.complete(requests, Sampling(max_new_tokens))
        scores = self._scores(metric, questions, requests, [done.text for done in completions])
        return [
            Prediction(item.question_id, done.text, score, done.weight_version, done.num_logprob_tokens)
            for item, done, score in zip(questions, completions, scores, strict=True)
        ]

    def _scores(
        self, metric: AnswerMetric, questions: Sequence[HeldOutQuestion], requests: Sequence[Request], answers: Sequence[str]
    ) -> list[float | None]:
        if isinstance(metric, Judge):
            return [None] * len(questions)
        if isinstance(metric, Likelihood):
            scored = self._engine.score(requests, [item.answer for item in questions])
            return [metric.of(one.logprob, one.num_tokens) for one in scored]
        return [metric.score(item, answer) for item, answer in zip(questions, answers, strict=True)]
