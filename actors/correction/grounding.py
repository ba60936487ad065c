"""Grounded correction: samples every sentence several times and scores it with the image, a blank image and a noisy one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.correction.asking import CorrectionClient, ended
from actors.engines.base import Request, Score
from actors.views import drawn_seed
from policies.correction.methods import Candidate, Draft, Grounded, Step, next_sentence
from policies.records import Record


@dataclass(frozen=True, slots=True)
class _Measured:
    """A candidate of one row with the score for its record."""

    candidate: Candidate
    score: Score


def answer_grounded(client: CorrectionClient, policy: Grounded, shard_seed: int, records: list[Record]) -> list[Record]:
    """Answer the records as `policies.correction.methods.Grounded` decides. A pass requests the candidates of all open rows in two
    calls, greedy and sampled, scores the distinct ones in two, and the best on every other view in one."""
    drafts = [Draft(record.question) for record in records]
    kept: list[list[_Measured]] = [[] for _ in records]
    for number in range(policy.max_passes):
        rows = [row for row, draft in enumerate(drafts) if not draft.done]
        if not rows:
            break
        requests = [client.request(records[row], " ".join(drafts[row].written)) for row in rows]
        seed = drawn_seed(shard_seed, number)
        steps = _candidates(client, policy, requests, seed)
        measured = _measure(client, requests, steps)
        found = [policy.best(drafts[row], [one.candidate for one in group]) for row, group in zip(rows, measured, strict=True)]
        for row, group, best in zip(rows, measured, _score_views(client, policy, requests, found, seed), strict=True):
            before = len(drafts[row].sentences)
            drafts[row] = policy.accept(drafts[row], best)
            if len(drafts[row].sentences) > before:
                kept[row] += [one for one in group if one.candidate.step.sentence == drafts[row].sentences[-1]]
    return [_answered(*row, client.engine.weight_version) for row in zip(records, drafts, kept, strict=True)]


def _candidates(client: CorrectionClient, policy: Grounded, requests: list[Request], seed: int) -> list[list[Step]]:
    """Distinct next sentences of each request, the greedy one first; none if the greedy text has no sentence."""
    found = []
    for written in client.several(requests, policy.num_candidates - 1, policy.temperature, seed, policy.stop()):
        steps = [next_sentence(one.text, ended(one, policy.stop())) for one in written]
        distinct = {step.sentence: step for step in reversed(steps) if step is not None}
        found.append([] if steps[0] is None else list(reversed(distinct.values())))
    return found


def _measure(client: CorrectionClient, requests: list[Request], steps: list[list[Step]]) -> list[list[_Measured]]:
    """Score every candidate on its image and on a blank one."""
    asked = [request for request, group in zip(requests, steps, strict=True) for _ in group]
    flat = [step for group in steps for step in group]
    scores = zip(flat, _score(client, asked, flat), _score(client, asked, flat, blank_image=True), strict=True) if flat else ()
    measured = iter([_Measured(Candidate(step, _mean(seen), _mean(seen) - _mean(blank)), seen) for step, seen, blank in scores])
    return [[next(measured) for _ in group] for group in steps]


def _score_views(
    client: CorrectionClient, policy: Grounded, requests: list[Request], found: list[Candidate | None], seed: int
) -> list[Candidate | None]:
    """Add the mean log-probability on `num_looks` other views to the best candidates."""
    rows = [row for row, best in enumerate(found) if best is not None]
    if not rows or not policy.num_looks:
        return found
    steps = [best.step for best in found if best is not None]
    totals = [0.0] * len(rows)
    for look in range(policy.num_looks):
        views = [client.another_view(requests[row], drawn_seed(seed, look, row)) for row in rows]
        totals = [total + _mean(score) for total, score in zip(totals, _score(client, views, steps), strict=True)]
    means = {row: total / policy.num_looks for row, total in zip(rows, totals, strict=True)}
    return [None if best is None else replace(best, view_logprob=means[row]) for row, best in enumerate(found)]


def _score(client: CorrectionClient, requests: list[Request], steps: Sequence[Step], *, blank_image: bool = False) -> list[Score]:
    """Log-probability of each sentence after its request, with the end token only if the model ended: an engine's score includes
    the end token, so its score after the sentence is subtracted."""
    open_rows = [row for row, step in enumerate(steps) if not step.ended]
    ends = [replace(requests[row], answer_prefix=f"{requests[row].answer_prefix} {steps[row].sentence}".lstrip()) for row in open_rows]
    texts = [step.sentence for step in steps] + [""] * len(ends)
    scores = client.engine.score([*requests, *ends], texts, blank_image=blank_image)
    found = scores[: len(requests)]
    for row, end in zip(open_rows, scores[len(requests) :], strict=True):
        whole = found[row]
        found[row] = Score(whole.logprob - end.logprob, whole.num_tokens - end.num_tokens, whole.weight_version)
    return found


def _mean(score: Score) -> float:
    return score.logprob / max(1, score.num_tokens)


def _answered(record: Record, draft: Draft, kept: Sequence[_Measured], weight_version: str) -> Record:
    return replace(
        record,
        answer=draft.text,
        sentences=draft.sentences,
        sentence_logprobs=tuple(one.score.logprob for one in kept),
        sentence_gains=tuple(one.candidate.gain for one in kept),
        num_dropped_sentences=len(draft.dropped),
        answer_logprob=sum(one.score.logprob for one in kept),
        answer_num_tokens=sum(one.score.num_tokens for one in kept),
        corrector_weight_version=weight_version,
    )
