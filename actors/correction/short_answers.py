"""Short answers: samples several answers to a question of the knowledge types and weights each by its probability."""

from __future__ import annotations

from dataclasses import replace

from actors.correction.asking import CorrectionClient
from actors.engines.base import Completion
from actors.views import drawn_seed
from policies.correction.methods import Answering
from policies.generation.knowledge import ShortAnswer, ranked
from policies.records import Record

_SHORT_ANSWER_TOKENS = 16
"""Maximum length of a short answer."""


def answer_shortly(client: CorrectionClient, policy: Answering, shard_seed: int, records: list[Record]) -> list[Record]:
    """Add all distinct answers to the records, the heaviest as `answer`. Two engine calls: greedy, and sampled at temperature 1."""
    if not records:
        return []
    brief = replace(client, max_new_tokens=_SHORT_ANSWER_TOKENS)
    requests = [client.request(record) for record in records]
    written = brief.several(requests, policy.num_short_answers, temperature=1.0, seed=drawn_seed(shard_seed, 1))
    return [_answered(record, group) for record, group in zip(records, written, strict=True)]


def _answered(record: Record, written: list[Completion]) -> Record:
    answers = ranked(ShortAnswer(" ".join(one.text.split()), one.mean_logprob) for one in written)
    best = max(written, key=lambda one: (bool(one.text.strip()), one.mean_logprob))
    answer = answers[0].text if answers else ""
    return replace(
        record,
        answer=answer,
        sentences=(answer,) if answer else (),
        sentence_logprobs=(best.logprob,) if answer else (),
        answer_logprob=best.logprob,
        answer_num_tokens=best.num_logprob_tokens,
        short_answers=tuple(one.text for one in answers),
        short_answer_weights=tuple(one.weight for one in answers),
        corrector_weight_version=best.weight_version,
    )
