"""The corrector: VIC. The question is answered again, sentence by sentence, while looking at the image."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from actors.engines.base import Completion, Engine, FinishReason, Request, Sampling
from actors.shards import Shard, ShardImages
from actors.views import perturbed
from policies.correction import CorrectionPolicy, Draft
from policies.records import Record
from policies.sentences import split_sentences


class Corrector:
    """Runs VIC (VIGC, section 3.2) on the engine that generated the shard, and gathers the evidence that filters judge by."""

    def __init__(self, engine: Engine, policy: CorrectionPolicy, images: ShardImages) -> None:
        self._engine = engine
        self._policy = policy
        self._images = images

    def correct(self, shard: Shard, records: list[Record]) -> list[Record]:
        """The records with `answer`, its sentences and scores. Records without a question pass through."""
        asked = [index for index, record in enumerate(records) if record.question and not record.reasons]
        if not asked:
            return records
        working = [records[index] for index in asked]
        working = self._keep_original(working) if self._policy.skip else self._answer(working)
        working = self._measure_blank(self._view(shard.seed, self._describe(working)))
        corrected = dict(zip(asked, working, strict=True))
        return [corrected.get(index, record) for index, record in enumerate(records)]

    def _keep_original(self, records: list[Record]) -> list[Record]:
        """Without correction VIG's answer stands, with the confidence VIG wrote it with."""
        return [
            replace(
                record,
                answer=record.original_answer,
                sentences=tuple(split_sentences(record.original_answer)),
                answer_logprob=record.generated_logprob,
                answer_num_tokens=record.generated_num_tokens,
                corrector_weight_version=record.generator_weight_version,
            )
            for record in records
        ]

    def _answer(self, records: list[Record]) -> list[Record]:
        drafts = [Draft(record.question) for record in records]
        written: dict[int, list[tuple[int, Completion]]] = defaultdict(list)
        for _ in range(self._policy.max_passes):
            open_rows = [row for row, draft in enumerate(drafts) if not draft.done]
            if not open_rows:
                break
            requests = [self._request(records[row], answer_prefix=drafts[row].text) for row in open_rows]
            for row, completion in zip(open_rows, self._greedy(requests, self._policy.stop()), strict=True):
                before = len(drafts[row].sentences)
                ended = completion.finish_reason is FinishReason.STOP and not completion.text.endswith(self._policy.stop() or ("\0",))
                drafts[row] = self._policy.accept(drafts[row], completion.text, ended)
                written[row].append((len(drafts[row].sentences) - before, completion))
        return [_answered(record, draft, written[row]) for row, (record, draft) in enumerate(zip(records, drafts, strict=True))]

    def _describe(self, records: list[Record]) -> list[Record]:
        """The model's own description of each image: asked once per image."""
        if not self._policy.describe:
            return records
        first = {record.image_id: record for record in records}
        requests = [replace(self._request(record), prompt=self._policy.describe_prompt) for record in first.values()]
        described = dict(zip(first, self._greedy(requests), strict=True))
        return [replace(record, view_description=described[record.image_id].text) for record in records]

    def _view(self, shard_seed: int, records: list[Record]) -> list[Record]:
        """The question again on perturbed views of the image: independent looks at the same thing."""
        answers: list[list[str]] = [[] for _ in records]
        for view in range(self._policy.num_views):
            requests = []
            for row, record in enumerate(records):
                request = self._request(record)
                seed = (shard_seed * 31 + view * 1009 + row) % 2**63
                requests.append(replace(request, image=perturbed(request.image, self._policy.view_noise, seed), image_key=""))
            for row, completion in enumerate(self._greedy(requests)):
                answers[row].append(completion.text)
        return [replace(record, view_answers=tuple(given)) for record, given in zip(records, answers, strict=True)]

    def _measure_blank(self, records: list[Record]) -> list[Record]:
        if not self._policy.measure_blank:
            return records
        requests = [self._request(record) for record in records]
        scores = self._engine.score(requests, [record.answer for record in records], blank_image=True)
        return [replace(record, blank_logprob=score.logprob) for record, score in zip(records, scores, strict=True)]

    def _request(self, record: Record, answer_prefix: str = "") -> Request:
        return Request(self._images.open(record.image_id), record.question, answer_prefix, image_key=record.image_id)

    def _greedy(self, requests: list[Request], stop: tuple[str, ...] = ()) -> list[Completion]:
        return self._engine.complete(requests, Sampling(self._policy.max_new_tokens, stop=stop))


def _answered(record: Record, draft: Draft, written: list[tuple[int, Completion]]) -> Record:
    """Fold the passes into the record; a pass's log-probability is shared evenly by the sentences it added."""
    per_sentence = [completion.logprob / added for added, completion in written if added for _ in range(added)]
    return replace(
        record,
        answer=draft.text,
        sentences=draft.sentences,
        sentence_logprobs=tuple(per_sentence),
        answer_logprob=sum(completion.logprob for _, completion in written),
        answer_num_tokens=sum(completion.num_logprob_tokens for _, completion in written),
        corrector_weight_version=written[-1][1].weight_version,
    )
