"""The corrector: VIC. Answers the question again, sentence by sentence, while looking at the image."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

from actors.correction.asking import CorrectionClient, ended
from actors.correction.grounding import answer_grounded
from actors.correction.premises import check_premises
from actors.correction.short_answers import answer_shortly
from actors.engines.base import Completion, Engine
from actors.shards import Shard, ShardImages
from actors.transforms import picture_transforms
from actors.views import drawn_seed
from policies.correction.methods import CorrectionPolicy, Draft, Grounded, SentenceBySentence
from policies.correction.sentences import split_sentences
from policies.generation.knowledge import is_knowledge
from policies.metrics import normalise, view_agreement
from policies.records import Reason, Record

_VIEWS = 3
"""First number of the seeds by which answers on views are sampled."""


class Corrector:
    """Runs VIC (VIGC, section 3.2) on the engine that generated the shard, and measures the evidence for filters."""

    def __init__(self, engine: Engine, policy: CorrectionPolicy, images: ShardImages) -> None:
        """Raises `ValueError` if the policy's transforms cannot be used."""
        self._policy = policy
        transform = picture_transforms(policy.view_transforms) if policy.view_transforms else None
        self._client = CorrectionClient(engine, images, policy.max_new_tokens, policy, transform)

    def correct(self, shard: Shard, records: list[Record]) -> list[Record]:
        """Add `answer`, its sentences and scores, and the evidence to the records. Records without a question stay unchanged. A record
        is rejected if its question is too long, and left unanswered if the model refutes a premise."""
        done = [self._bounded(record) for record in records]
        asked = [index for index, record in enumerate(done) if record.question and not record.reasons]
        for index, record in zip(asked, self._check([done[index] for index in asked]), strict=True):
            done[index] = record
        standing = [index for index in asked if not done[index].refuted_premises]
        for index, record in zip(standing, self._answer(shard.seed, [done[index] for index in standing]), strict=True):
            done[index] = record
        return done

    def _bounded(self, record: Record) -> Record:
        too_long = len(record.question.split()) > self._policy.max_question_words
        return record.rejected(Reason.TOO_LONG) if too_long and not record.reasons else record

    def _check(self, records: list[Record]) -> list[Record]:
        return check_premises(self._client, self._policy, records) if self._policy.check_premises else records

    def _answer(self, shard_seed: int, records: list[Record]) -> list[Record]:
        """Add answers and evidence to records that all have a question."""
        if not records:
            return []
        answered = self._keep_original(records) if self._policy.skip else self._answer_by_type(shard_seed, records)
        return self._measure_blank(self._view(shard_seed, self._describe(answered)))

    def _answer_by_type(self, shard_seed: int, records: list[Record]) -> list[Record]:
        """Answer questions of the knowledge types shortly, the others in sentences."""
        policy = self._policy
        assert isinstance(policy, Grounded | SentenceBySentence), f"{type(policy).__name__} extends neither Grounded nor SentenceBySentence"
        is_short = [is_knowledge(record.question_type) for record in records]
        long = [record for record, short in zip(records, is_short, strict=True) if not short]
        short = [record for record, short in zip(records, is_short, strict=True) if short]
        if isinstance(policy, Grounded):
            long = answer_grounded(self._client, policy, shard_seed, long)
        else:
            long = self._answer_in_sentences(policy, long)
        answered = {True: iter(answer_shortly(self._client, policy, shard_seed, short)), False: iter(long)}
        return [next(answered[short]) for short in is_short]

    def _keep_original(self, records: list[Record]) -> list[Record]:
        """Without correction, keep VIG's answer with the log-probability that VIG gave it."""
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

    def _answer_in_sentences(self, policy: SentenceBySentence, records: list[Record]) -> list[Record]:
        if policy.one_sentence_per_pass is None:
            policy = replace(policy, one_sentence_per_pass=self._client.engine.features_depend_on_text)
        drafts = [Draft(record.question) for record in records]
        written: dict[int, list[tuple[int, Completion]]] = defaultdict(list)
        for _ in range(policy.max_passes):
            open_rows = [row for row, draft in enumerate(drafts) if not draft.done]
            if not open_rows:
                break
            requests = [self._client.request(records[row], drafts[row].text) for row in open_rows]
            for row, completion in zip(open_rows, self._client.greedy(requests, policy.stop()), strict=True):
                before = len(drafts[row].sentences)
                drafts[row] = policy.accept(drafts[row], completion.text, ended(completion, policy.stop()))
                written[row].append((len(drafts[row].sentences) - before, completion))
        return [_answered(record, draft, written[row]) for row, (record, draft) in enumerate(zip(records, drafts, strict=True))]

    def _describe(self, records: list[Record]) -> list[Record]:
        """Add the model's own description of each image, requested once per image."""
        if not self._policy.describe:
            return records
        first = {record.image_id: record for record in records}
        requests = [self._client.request(record, prompt=self._policy.describe_prompt) for record in first.values()]
        described = dict(zip(first, self._client.greedy(requests), strict=True))
        return [replace(record, view_description=described[record.image_id].text) for record in records]

    def _view(self, shard_seed: int, records: list[Record]) -> list[Record]:
        """Ask the question again on independently perturbed views of the image."""
        given: list[list[Completion]] = [[] for _ in records]
        for view in range(self._policy.num_views):
            requests = []
            for row, record in enumerate(records):
                request = self._client.request(record)
                seed = (shard_seed * 31 + view * 1009 + row) % 2**63
                requests.append(self._client.another_view(request, seed))
            for row, completion in enumerate(self._client.on_views(requests, drawn_seed(shard_seed, _VIEWS, view))):
                given[row].append(completion)
        pools = isinstance(self._policy, SentenceBySentence) and self._policy.pool_views
        viewed = [(_pooled if pools else _viewed)(record, views) for record, views in zip(records, given, strict=True)]
        return [replace(record, agreement=view_agreement(record)) for record in viewed]

    def _measure_blank(self, records: list[Record]) -> list[Record]:
        if not self._policy.measure_blank:
            return records
        requests = [self._client.request(record) for record in records]
        scores = self._client.engine.score(requests, [record.answer for record in records], blank_image=True)
        return [replace(record, blank_logprob=score.logprob) for record, score in zip(records, scores, strict=True)]


def _viewed(record: Record, views: list[Completion]) -> Record:
    return replace(record, view_answers=tuple(view.text for view in views))


def _pooled(record: Record, views: list[Completion]) -> Record:
    """The record with the answer that most of the image and its views give; the image's own then counts as one of the views."""
    votes = Counter([normalise(record.answer), *(normalise(view.text) for view in views)])
    chosen, _ = votes.most_common(1)[0]  # on a tie the first
    if chosen == normalise(record.answer):
        return _viewed(record, views)
    place, view = next((place, view) for place, view in enumerate(views) if normalise(view.text) == chosen)
    sentences = tuple(split_sentences(view.text))
    return replace(
        record,
        answer=" ".join(sentences),
        sentences=sentences,
        sentence_logprobs=(view.logprob / len(sentences),) * len(sentences) if sentences else (),
        answer_logprob=view.logprob,
        answer_num_tokens=view.num_logprob_tokens,
        view_answers=(record.answer, *(other.text for number, other in enumerate(views) if number != place)),
    )


def _answered(record: Record, draft: Draft, written: list[tuple[int, Completion]]) -> Record:
    """Merge the passes into the record; a pass's log-probability is split evenly over the sentences that it added."""
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
