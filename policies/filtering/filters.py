"""Filters: each rejects records for a reason. `policies.filtering.chain` applies them in order."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from policies.answers.content_words import ASKING_WORDS, FUNCTION_WORDS, words_of
from policies.checks import any_of, check_at_least, check_at_most, check_choice, check_range, check_share, check_texts
from policies.correction.methods import Answering, CorrectionPolicy, Grounded
from policies.errors import MissingMeasurementError
from policies.filtering.chain import FilterPolicy, ImageFilter, Workload, filter_faults
from policies.filtering.near_duplicates import DuplicateSearch, TextKeys, TextSimilarity, hashes_of
from policies.generation.instructions import parse_vig
from policies.generation.knowledge import is_knowledge
from policies.metrics import normalise, view_agreement
from policies.records import Reason, Record
from policies.registry import Registry

FILTER_POLICIES: Registry[FilterPolicy | ImageFilter] = Registry("filter policy", filter_faults)


_LEAST_GREEDY_LOGPROB = -13.0
"""Nats: a greedy token is at least as likely as a token of a uniform vocabulary of 400,000."""


class _OneByOne(ABC):
    """A filter that judges every record alone. One without a question or an answer has no measurements and is `EMPTY`."""

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        return [self._reason(record) if record.question and record.answer else Reason.EMPTY for record in records]

    @abstractmethod
    def _reason(self, record: Record) -> Reason | None:
        """The reason against a record, or None."""


@FILTER_POLICIES.register("parsable")
@dataclass(frozen=True)
class Parsable:
    """VIG wrote one question and one answer."""

    name: str = field(default="parsable", init=False)

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        return [None if record.question and parse_vig(record.generated_text) else Reason.UNPARSABLE for record in records]


@FILTER_POLICIES.register("premise")
@dataclass(frozen=True)
class Premise:
    """The model itself did not refute that the objects that the question names are there, and are unique. Belongs before `length`: a
    question with a refuted premise has no answer."""

    name: str = field(default="premise", init=False)

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        return [] if correction.check_premises else ["correction check_premises on"]

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        return [self._reason(record) for record in records]

    def _reason(self, record: Record) -> Reason | None:
        if not record.question:
            return Reason.EMPTY
        if record.refuted_premises is None:
            raise MissingMeasurementError(f"{record.record_id} has unchecked premises; set correction check_premises on")
        return Reason.FALSE_PREMISE if record.refuted_premises else None


@FILTER_POLICIES.register("length")
@dataclass(frozen=True, kw_only=True)
class Length(_OneByOne):
    """Question and answer are neither empty nor outside their range of words."""

    min_question_words: int = 3
    max_question_words: int = 60
    min_answer_words: int = 1
    max_answer_words: int = 300
    name: str = field(default="length", init=False)

    def __post_init__(self) -> None:
        check_range("question_words", self.min_question_words, self.max_question_words)
        check_range("answer_words", self.min_answer_words, self.max_answer_words)

    def idle(self, workload: Workload) -> str:
        correction = workload.correction
        answer_tokens = correction.max_passes * correction.max_new_tokens if isinstance(correction, Answering) else workload.max_new_tokens
        is_bound = (
            max(self.min_question_words, self.min_answer_words) > 1
            or self.max_question_words < min(workload.max_new_tokens, correction.max_question_words)
            or self.max_answer_words < answer_tokens
        )
        return (
            "" if is_bound else "it rejects only what is empty: no text has fewer than 1 word, or more words than the token budgets allow"
        )

    def _reason(self, record: Record) -> Reason | None:
        question, answer = len(record.question.split()), len(record.answer.split())
        if not question or not answer:
            return Reason.EMPTY
        if question < self.min_question_words or answer < self.min_answer_words:
            return Reason.TOO_SHORT
        return Reason.TOO_LONG if question > self.max_question_words or answer > self.max_answer_words else None


@FILTER_POLICIES.register("duplicates")
@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """No question is repeated, and no question with its answer is nearly repeated; the first in record order is kept. It sees one shard,
    which holds all records of its images; `deduplication` compares records across shards, earlier rounds and the seed data.

    Options:
        scope: `image` compares the records of an image with each other, `shard` those of the whole shard, whose size decides what is found:
            `deduplication` with scope `all` replaces it, except that it keeps a question with another answer.
        threshold: Jaccard similarity (0.5..1) of the sets of word shingles of question and answer from which two records are
            near duplicates; see `policies.filtering.near_duplicates`.
        shingle_words: words per shingle.
    """

    scope: str = "image"
    threshold: float = 0.9
    shingle_words: int = 3
    name: str = field(default="duplicates", init=False)

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, ("image", "shard"))
        TextSimilarity(self.threshold, self.shingle_words)  # raises for values out of range

    def idle(self, workload: Workload) -> str:
        if self.scope == "image" and workload.num_per_image == 1:
            return (
                "scope image compares the records of an image, and generation.num_per_image is 1; leave it out, or set deduplication.scope "
                "to all to compare the records of different images"
            )
        return ""

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        similarity = TextSimilarity(self.threshold, self.shingle_words)
        texts = [f"{record.question} {record.answer}" for record in records]
        keys = TextKeys(hashes_of(normalise(record.question) for record in records), similarity.keys(texts))
        scopes = hashes_of(record.image_id if self.scope == "image" else "" for record in records)
        search = DuplicateSearch(keys, scopes)
        exact, near = search.exact(), search.near(similarity.sets(texts), self.threshold)
        reasons = dict.fromkeys(exact.tolist(), Reason.EXACT_DUPLICATE) | dict.fromkeys(near.tolist(), Reason.NEAR_DUPLICATE)
        return [reasons.get(row) for row in range(len(records))]


@FILTER_POLICIES.register("agreement")
@dataclass(frozen=True, kw_only=True)
class Agreement(_OneByOne):
    """The answer was also given by VIG in the first place (`require_original`), and on at least `min_view_share` of the
    perturbed views. Answers are compared after `normalise`."""

    require_original: bool = True
    min_view_share: float = 1.0
    name: str = field(default="agreement", init=False)

    def __post_init__(self) -> None:
        check_share("min_view_share", self.min_view_share)
        if not self.require_original and not self.min_view_share:
            raise ValueError("require_original is off with min_view_share 0; expected one of them, nothing would be compared")

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        if self.min_view_share and not correction.num_views:
            return ["correction num_views of 1 or more (or its own min_view_share 0)"]
        if not self.min_view_share and correction.skip:
            return ["a correction other than `none`, which keeps the original answer"]
        return []

    def _reason(self, record: Record) -> Reason | None:
        if self.require_original and normalise(record.original_answer) != normalise(record.answer):
            return Reason.ANSWERS_DISAGREE
        if not self.min_view_share:
            return None
        agreement = view_agreement(record)
        if agreement is None:
            raise MissingMeasurementError(f"{record.record_id} has no view answers; set correction num_views to 1 or more")
        return None if agreement >= self.min_view_share else Reason.ANSWERS_DISAGREE


@FILTER_POLICIES.register("confidence")
@dataclass(frozen=True, kw_only=True)
class Confidence(_OneByOne):
    """The mean log-probability per token (nats) of the corrected answer is at least `min_mean_logprob`, and that of VIG's
    output at least `min_vig_mean_logprob`, if given."""

    min_mean_logprob: float = -0.05
    min_vig_mean_logprob: float | None = None
    name: str = field(default="confidence", init=False)

    def __post_init__(self) -> None:
        check_at_most("min_mean_logprob", self.min_mean_logprob, 0.0)
        if self.min_vig_mean_logprob is not None:
            check_at_most("min_vig_mean_logprob", self.min_vig_mean_logprob, 0.0)

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        return ["a correction other than `none`, which measures no log-probability of an answer"] if correction.skip else []

    def idle(self, workload: Workload) -> str:
        if self.min_vig_mean_logprob is None and self.min_mean_logprob <= _LEAST_GREEDY_LOGPROB:
            return f"every greedy answer has a mean log-probability above {self.min_mean_logprob:g}; raise min_mean_logprob"
        return ""

    def _reason(self, record: Record) -> Reason | None:
        mean = record.mean_logprob
        if mean is None:
            raise MissingMeasurementError(f"{record.record_id} has no log-probability of its answer; set a correction other than `none`")
        return Reason.LOW_CONFIDENCE if mean < self.min_mean_logprob or self._vig_is_unsure(record) else None

    def _vig_is_unsure(self, record: Record) -> bool:
        if self.min_vig_mean_logprob is None:
            return False
        if record.generated_logprob is None or not record.generated_num_tokens:
            raise MissingMeasurementError(f"{record.record_id} has no log-probability of what VIG wrote; set min_vig_mean_logprob to null")
        return record.generated_logprob / record.generated_num_tokens < self.min_vig_mean_logprob


@FILTER_POLICIES.register("image_dependence")
@dataclass(frozen=True, kw_only=True)
class ImageDependence(_OneByOne):
    """The image makes the answer likelier by at least `min_gain` nats than a blank image does."""

    min_gain: float = 0.5
    name: str = field(default="image_dependence", init=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.min_gain):
            raise ValueError(f"min_gain is {self.min_gain}; expected a finite number of nats")

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        return [] if correction.measure_blank else ["correction measure_blank on"]

    def _reason(self, record: Record) -> Reason | None:
        if record.blank_logprob is None or record.answer_logprob is None:
            raise MissingMeasurementError(f"{record.record_id} has no log-probability on a blank image; set correction measure_blank on")
        return Reason.IMAGE_INDEPENDENT if record.answer_logprob - record.blank_logprob < self.min_gain else None


@FILTER_POLICIES.register("grounding")
@dataclass(frozen=True, kw_only=True)
class Grounding(_OneByOne):
    """The image supports the answer. Short answers, which are weighed and not grounded, pass.

    Options:
        min_mean_gain: nats per token that the image adds, mean over the sentences.
        max_dropped_sentences: an answer with more dropped sentences is too incomplete.
    """

    min_mean_gain: float = 0.0
    max_dropped_sentences: int = 0
    name: str = field(default="grounding", init=False)

    def __post_init__(self) -> None:
        check_at_least("max_dropped_sentences", self.max_dropped_sentences, 0)
        if not math.isfinite(self.min_mean_gain):
            raise ValueError(f"min_mean_gain is {self.min_mean_gain}; expected a finite number of nats per token")

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        return [] if isinstance(correction, Grounded) else ["the correction `grounded`"]

    def idle(self, workload: Workload) -> str:
        if all(map(is_knowledge, workload.question_types)):
            return "it lets short answers pass, and generation.type_mix has only types with short answers"
        max_passes = workload.correction.max_passes if isinstance(workload.correction, Answering) else 0
        if self.max_dropped_sentences >= max_passes and self.min_mean_gain <= _LEAST_GREEDY_LOGPROB:
            return "no answer has so many dropped sentences or so low a gain; lower max_dropped_sentences or raise min_mean_gain"
        return ""

    def _reason(self, record: Record) -> Reason | None:
        if is_knowledge(record.question_type):
            return None
        if not record.sentence_gains:
            raise MissingMeasurementError(f"{record.record_id} has no gains of its sentences; set the correction `grounded`")
        is_torso = record.num_dropped_sentences > self.max_dropped_sentences
        mean_gain = sum(record.sentence_gains) / len(record.sentence_gains)
        return Reason.UNGROUNDED if is_torso or mean_gain < self.min_mean_gain else None


@FILTER_POLICIES.register("short_answer")
@dataclass(frozen=True, kw_only=True)
class ShortAnswerWeight(_OneByOne):
    """VIGC's only filter, for the knowledge types: the heaviest short answer weighs at least `min_weight` (0..100, the cubed mean
    token probability in percent). Questions of the other types pass."""

    min_weight: float = 50.0
    name: str = field(default="short_answer", init=False)

    def __post_init__(self) -> None:
        check_at_least("min_weight", self.min_weight, 0.0)
        check_at_most("min_weight", self.min_weight, 100.0)

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        return ["a correction other than `none`, which weighs no short answers"] if correction.skip else []

    def idle(self, workload: Workload) -> str:
        if not any(map(is_knowledge, workload.question_types)):
            return "only okvqa and aokvqa have short answers, and generation.type_mix has neither"
        return "" if self.min_weight else "every answer weighs at least 0; raise min_weight"

    def _reason(self, record: Record) -> Reason | None:
        if not is_knowledge(record.question_type):
            return None
        if not record.short_answer_weights:
            raise MissingMeasurementError(f"{record.record_id} has no weighed short answers; set a correction other than `none`")
        return Reason.LOW_CONFIDENCE if max(record.short_answer_weights) < self.min_weight else None


@FILTER_POLICIES.register("basis")
@dataclass(frozen=True, kw_only=True)
class Basis(_OneByOne):
    """What the question presupposes is there: the answer does not deny it, and the model's own description of the image,
    written without the question, names it.

    Options:
        denials: regular expressions of answers that deny the question's premise.
        require_in_description: every content word of the question must be in the description (up to a plural s).
        ignore_words: words of a question, beside function words, that need not be in it.
        exempt: regular expressions of questions that presuppose nothing; they are not checked.
    """

    denials: Sequence[str] = ("^There is no ", "^There is more than one ", "^There is nothing ")
    require_in_description: bool = True
    ignore_words: Sequence[str] = ASKING_WORDS
    exempt: Sequence[str] = ("^Is there", "^How many", "^Describe")
    name: str = field(default="basis", init=False)

    def __post_init__(self) -> None:
        any_of("denials", self.denials)
        any_of("exempt", self.exempt)
        check_texts("ignore_words", self.ignore_words)

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        if self.require_in_description and not correction.describe:
            return ["correction describe on (or its own require_in_description off)"]
        return []

    def idle(self, workload: Workload) -> str:
        if any_of("exempt", self.exempt).search(""):
            return "exempt matches every question"
        return "" if self.denials or self.require_in_description else "it has no denials, and require_in_description is off"

    def _reason(self, record: Record) -> Reason | None:
        if any_of("exempt", self.exempt).search(record.question):
            return None
        if any_of("denials", self.denials).search(record.answer):
            return Reason.NO_BASIS
        unnamed = words_of(record.question) - self._ignored - words_of(record.view_description)
        return Reason.NO_BASIS if self.require_in_description and unnamed else None

    @cached_property
    def _ignored(self) -> set[str]:
        return words_of(" ".join([FUNCTION_WORDS, *self.ignore_words]))
