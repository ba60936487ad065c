"""The judge of a run: a text model that scores answers to held-out questions, within limits for the whole run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from actors.chat.endpoint import Endpoint, SpendingCapError
from actors.chat.endpoint_options import EndpointOptions
from loop.errors import LoopError, UserError, one_line, printable
from loop.monitors.progress import Stage
from loop.scoring.judging import JudgeOptions, ask_for_reviews
from loop.scoring.replies import ReplyJournal
from policies.chat import Ask, ChatModel, Reply, Usage
from policies.records import HeldOutQuestion
from policies.scoring.answer_metrics import Judge


class RunJudge:
    """A judge and its cost so far; a `ChatModel` that takes at most `max_requests` requests per run."""

    def __init__(self, metric: Judge) -> None:
        """
        Raises:
            UserError: the model cannot be used: a missing key, an invalid address, or a folder without a text model.
        """
        self.metric = metric
        self.name = metric.model or metric.path
        self._spent = Usage()
        """Usage in the run so far, including earlier drivers."""
        try:
            self._model = _endpoint(metric, 0.0) if metric.endpoint else _local(metric.path)
        except ValueError as error:
            raise UserError(f"metric judge: {one_line(error)}") from error

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See `ChatModel`.

        Raises:
            SpendingCapError: `max_requests` or `max_usd` of the metric is reached.
        """
        model: ChatModel = _endpoint(self.metric, self._spent.usd) if self.metric.endpoint else self._model
        for reply in model.complete(self._counted(asks)):
            self._spent += Usage(usd=reply.usage.usd)
            yield reply

    def scores(self, folder: Path, asked: Sequence[tuple[HeldOutQuestion, str]], stage: Stage) -> list[float | None]:
        """The score of each answer. Replies are kept in `folder`, so that no driver asks twice.

        Raises:
            EndpointError: the endpoint stopped answering, or a limit is reached. Replies so far are kept.
        """
        metric = self.metric
        options = JudgeOptions(metric.both_orders, metric.num_attempts, metric.max_tokens, metric.temperature)
        pairs = [metric.pair(question, answer) for question, answer in asked]
        with ReplyJournal(folder / f"{_key(metric)}.sqlite", self, self.name) as journal:
            self._spent = max(self._spent, journal.kept, key=lambda one: (one.num_requests, one.usd))
            reviews = ask_for_reviews(journal, pairs, options, lambda: stage.advance(1))
        found = [metric.of([reviews[pair.question_id, look] for look in metric.looks]) for pair in pairs]
        if all(score is None for score in found):
            example = next(iter(reviews.values()))
            said = printable((example.failure or example.text)[:200])
            raise LoopError(f"the judge {self.name} gave no verdict on any of {len(found)} answers; the first time it said {said!r}")
        return found

    def _counted(self, asks: Iterable[Ask]) -> Iterator[Ask]:
        for ask in asks:
            if self._spent.num_requests >= self.metric.max_requests:
                raise SpendingCapError(f"the judge {self.name} was asked {self._spent.num_requests} times, as often as max_requests allows")
            self._spent += Usage(num_requests=1)
            yield ask


@lru_cache(maxsize=8)
def judge_of(metric: Judge) -> RunJudge:
    """The judge for a metric, cached per process so that a local model is loaded once. Raises `UserError`."""
    return RunJudge(metric)


def _endpoint(metric: Judge, spent_usd: float) -> Endpoint:
    return Endpoint(
        EndpointOptions(
            metric.endpoint, metric.model, metric.api, metric.api_key_env, metric.max_concurrency, metric.requests_per_minute,
            metric.timeout_s,
            usd_per_million_input=metric.usd_per_million_input, usd_per_million_output=metric.usd_per_million_output,
            max_usd=metric.max_usd, spent_usd=spent_usd,
        )
    )  # fmt: skip


def _local(path: str) -> ChatModel:
    from actors.chat.local import LocalChat  # imports torch

    return LocalChat(path)


def _key(metric: Judge) -> str:
    return hashlib.sha256(f"{metric.endpoint}\n{metric.model}\n{metric.path}".encode()).hexdigest()[:16]
