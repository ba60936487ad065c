"""Correction (VIC): how a question that VIG wrote is answered again, after VIGC (arXiv 2308.12714, section 3.2).

VIGC re-prompts with the accepted sentences for every further sentence. For a decoder-only model under greedy decoding the
accepted prefix leaves the same state as continued decoding, so one pass to the end token gives the same sentences. A Q-Former model
looks at the image again through the longer text, which is what `one_sentence_per_pass` is for. `grounded` goes further: it
generates every sentence several times and keeps the one that the image supports most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from policies.checks import check_at_least, check_at_most
from policies.correction.evidence import Evidence
from policies.correction.sentences import first_sentence_end, repeats, split_sentences
from policies.registry import Registry

_LAST_STOP = re.compile(r".*(?:[.!?](?=\s)|[。！？।؟])", re.DOTALL)  # noqa: RUF001
_SENTENCE_STOPS = (". ", "? ", "! ", "。", "！", "？", "।", "؟")  # noqa: RUF001
"""The stop strings include white space: without it decoding would stop inside 3.5, which the next pass could not rejoin."""


@dataclass(frozen=True)
class Draft:
    """The state of one correction: a question and the sentences of its new answer so far."""

    question: str
    sentences: tuple[str, ...] = ()
    done: bool = False
    dropped: tuple[tuple[int, str], ...] = ()
    """Sentences that were generated but dropped, each with the number of sentences before it."""

    @property
    def text(self) -> str:
        """The answer so far, sentences joined by a space."""
        return " ".join(self.sentences)

    @property
    def written(self) -> tuple[str, ...]:
        """What the next pass continues: kept and dropped sentences as they were written."""
        found = list(self.sentences)
        for place, sentence in self.dropped:
            found.insert(place, sentence)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a pass of one sentence."""

    sentence: str
    ended: bool
    """Whether the model ended the answer with it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One possible next sentence, with its measurements. Log-probabilities are natural, means per token."""

    step: Step
    logprob: float
    """On the image."""
    gain: float
    """What the image adds: `logprob` less that on a blank image."""
    view_logprob: float = 0.0
    """On other views of the image; low for what the model only guesses."""


def next_sentence(text: str, ended: bool) -> Step | None:
    """The first sentence of the text of a pass, or None if it completes none; see `SentenceBySentence.accept` for `ended`."""
    end = first_sentence_end(text, final=ended)
    if end is None and (stopped := _LAST_STOP.match(text)):
        # Stopped at something like `Mr. `, or at a `。` that a quote could still close: no text is lost, it only costs another pass.
        end = stopped.end()
    return None if end is None else Step(" ".join(text[:end].split()), ended and not text[end:].strip())


@dataclass(frozen=True, kw_only=True)
class CorrectionPolicy(Evidence):
    """What the corrector asks a model, and what it keeps of the reply. The options of `Evidence` are options of every policy.
    User-defined policies extend `SentenceBySentence` or `Grounded`."""

    skip: ClassVar[bool] = False
    """Keep VIG's own answer: only the evidence is asked for."""


@dataclass(frozen=True, kw_only=True)
class Answering(CorrectionPolicy):
    """Options of the policies that answer again.

    Options:
        max_passes: most sentences of an answer, and so most passes.
        num_short_answers: answers to sample beside the greedy one for a question of the knowledge types.
    """

    max_passes: int = 8
    num_short_answers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("max_passes", self.max_passes, 1)
        check_at_least("num_short_answers", self.num_short_answers, 0)


@dataclass(frozen=True, kw_only=True)
class SentenceBySentence(Answering):
    """Answer sentence by sentence, until the end token, `max_passes` sentences, or a pass that completes no sentence.

    Options:
        one_sentence_per_pass: ask again after every sentence. None does so for a Q-Former, which then looks at the image with the kept
            sentences as input; a decoder-only model writes the same in one pass. With `max_passes` 4 and `end_at_repetition` off
            this is what VIGC's published code does.
        end_at_repetition: a sentence that starts to repeat the last ones is dropped and ends the answer.
        pool_views: the answer is the one that is given most often on the image and its views, and on a tie the image's own.
    """

    one_sentence_per_pass: bool | None = None
    end_at_repetition: bool = True
    pool_views: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool_views and self.num_views < 2:
            raise ValueError(f"pool_views is on with num_views {self.num_views}; expected 2 or more: one other answer outvotes nothing")

    def stop(self) -> tuple[str, ...]:
        """Stop strings of a pass, for the engine."""
        return _SENTENCE_STOPS if self.one_sentence_per_pass else ()

    def accept(self, draft: Draft, text: str, ended: bool) -> Draft:
        """The draft after a pass.

        Args:
            draft: what the pass was asked to continue.
            text: what the engine wrote after the accepted sentences.
            ended: whether the model itself ended (its end token, not a stop string and not the token budget).
        """
        if draft.done:
            return draft
        if self.one_sentence_per_pass:
            step = next_sentence(text, ended)
            written, ended = ([step.sentence], step.ended) if step else ([], True)
        else:
            written = split_sentences(text, final=ended)
        accepted = list(draft.sentences)
        for sentence in written:
            if len(accepted) == self.max_passes or (self.end_at_repetition and repeats(sentence, accepted)):
                return replace(draft, sentences=tuple(accepted), done=True)
            accepted.append(sentence)
        return replace(draft, sentences=tuple(accepted), done=not written or len(accepted) == self.max_passes or ended)


@dataclass(frozen=True, kw_only=True)
class Grounded(Answering):
    """Generate every sentence several times and keep the one that the image supports most.

    The support of a sentence is its mean log p(token | image), plus `image_weight` times its gain, the mean of log p(token | image)
    - log p(token | blank image): visual contrastive decoding (Leng et al. 2024, arXiv 2311.16922) over whole sentences; without the
    first term the rarest sentence wins. The best one is then scored on other views of the image, moved and grainier, on which the
    model should see the same. If these or the gain do not confirm it, it is dropped from the answer, but stays in the text that the next
    pass continues, because greedy decoding would write it again. The answer ends at the end token, at `max_passes` sentences (dropped
    ones count), and at a pass whose greedy sentence is missing or starts to repeat the last ones.

    Options:
        num_candidates: candidates that are compared: the greedy one, and others sampled at `temperature`.
        temperature: of the sampled candidates.
        image_weight: weight of the gain.
        num_looks: other views (`view_noise`, `view_shift`) that the best candidate is scored on; 0 scores none.
        min_view_logprob: nats per token, the mean over those views, below which it is dropped. How confident a model is of what it sees
            differs between models: compare this with the `sentence_logprobs` of a few records.
        min_gain: nats per token that the image must add. A conclusion follows from the sentences before, not from the image, and
            gains about 0: keep this below, or conclusions are dropped.
    """

    num_candidates: int = 4
    temperature: float = 1.0
    image_weight: float = 0.3
    num_looks: int = 2
    min_view_logprob: float = -0.5
    min_gain: float = -0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("num_candidates", self.num_candidates, 1)
        check_at_least("temperature", self.temperature, 0.0)
        check_at_least("image_weight", self.image_weight, 0.0)
        check_at_least("num_looks", self.num_looks, 0)
        check_at_most("min_view_logprob", self.min_view_logprob, 0.0)
        if not math.isfinite(self.min_gain):
            raise ValueError(f"min_gain is {self.min_gain}; expected a finite number of nats per token")
        if self.num_candidates > 1 and not self.temperature:
            raise ValueError(
                f"num_candidates is {self.num_candidates} with temperature 0; expected a temperature, or 1: they would be equal"
            )
        if self.num_looks and not self.pictures_differ:
            raise ValueError(f"num_looks is {self.num_looks} with view_noise and view_shift 0; expected one above 0, or num_looks 0")

    def stop(self) -> tuple[str, ...]:
        """Stop strings of a pass, for the engine."""
        return _SENTENCE_STOPS

    def best(self, draft: Draft, candidates: Sequence[Candidate]) -> Candidate | None:
        """The candidate that the image supports most; None if the answer ends.

        Args:
            draft: what the pass was asked to continue.
            candidates: distinct and measured, the greedy one first; none when the greedy text held no sentence.
        """
        written = draft.written
        if draft.done or not candidates or repeats(candidates[0].step.sentence, written):
            return None
        return max((one for one in candidates if not repeats(one.step.sentence, written)), key=self.support)

    def accept(self, draft: Draft, best: Candidate | None) -> Draft:
        """The draft after a pass, with the result of `best`, whose `view_logprob` has been measured."""
        if draft.done or best is None:
            return draft if draft.done else replace(draft, done=True)
        sentence, place = best.step.sentence, len(draft.written)
        done = best.step.ended or place + 1 == self.max_passes
        if best.gain < self.min_gain or best.view_logprob < self.min_view_logprob:
            return replace(draft, dropped=(*draft.dropped, (place, sentence)), done=done)
        return replace(draft, sentences=(*draft.sentences, sentence), done=done)

    def support(self, candidate: Candidate) -> float:
        """How well the image supports a sentence, nats per token."""
        return candidate.logprob + self.image_weight * candidate.gain


@dataclass(frozen=True, kw_only=True)
class NoCorrection(CorrectionPolicy):
    """Keep VIG's own answer; ask for nothing else, unless an option says so."""

    skip: ClassVar[bool] = True
    num_views: int = 0
    describe: bool = False
    measure_blank: bool = False


def _faults(policy: object) -> list[str]:
    """Why an object is not a correction policy: the corrector works only with the three below and their subclasses."""
    is_one = isinstance(policy, SentenceBySentence | Grounded | NoCorrection)
    return [] if is_one else ["it extends none of SentenceBySentence, Grounded and NoCorrection of policies.correction.methods"]


CORRECTION_POLICIES: Registry[CorrectionPolicy] = Registry("correction policy", _faults)
# Not by decorator, which would hide the types by which the corrector distinguishes them.
CORRECTION_POLICIES.register("sentence_by_sentence")(SentenceBySentence)
CORRECTION_POLICIES.register("grounded")(Grounded)
CORRECTION_POLICIES.register("none")(NoCorrection)
