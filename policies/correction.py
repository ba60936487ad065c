"""Correction (VIC): how a question that VIG wrote is answered again, after VIGC (arXiv 2308.12714, section 3.2).

VIGC re-prompts with the accepted sentences for every further sentence. For a decoder-only model under greedy decoding the
accepted prefix leaves the same state as writing on, so one pass to the end token gives the same sentences; a Q-Former model
looks at the image anew through the longer text, which is what `one_sentence_per_pass` is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Protocol

from policies.checks import check_at_least, check_share
from policies.registry import Registry
from policies.sentences import first_sentence_end, split_sentences

_LAST_STOP = re.compile(r".*[.!?](?=\s)", re.DOTALL)


@dataclass(frozen=True)
class Draft:
    """The state of one correction: a question and the sentences of its new answer so far."""

    question: str
    sentences: tuple[str, ...] = ()
    done: bool = False

    @property
    def text(self) -> str:
        """The answer so far, sentences joined by a space."""
        return " ".join(self.sentences)


class CorrectionPolicy(Protocol):
    """What the corrector asks a model, and what it keeps of the reply. Attributes are read, never set."""

    @property
    def skip(self) -> bool:
        """Keep VIG's own answer and ask the model nothing."""
        ...

    @property
    def max_passes(self) -> int:
        """Most sentences of an answer, and so most passes."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Token budget of one pass, of one view's answer and of the description."""
        ...

    @property
    def num_views(self) -> int:
        """Further independent answers, each on its own perturbed view of the image."""
        ...

    @property
    def view_noise(self) -> float:
        """Standard deviation of the pixel noise of a view, on a scale where pixels are 0..1."""
        ...

    @property
    def describe(self) -> bool:
        """Ask the model once for its own description of the image."""
        ...

    @property
    def describe_prompt(self) -> str:
        """How it is asked for that description."""
        ...

    @property
    def measure_blank(self) -> bool:
        """Score the answer on a blank image too."""
        ...

    def stop(self) -> tuple[str, ...]:
        """Stop strings of a pass, for the engine."""
        ...

    def accept(self, draft: Draft, text: str, ended: bool) -> Draft:
        """The draft after a pass.

        Args:
            draft: what the pass was asked to continue.
            text: what the engine wrote after the accepted sentences.
            ended: whether the model itself ended (its end token, not a stop string and not the token budget).
        """
        ...


CORRECTION_POLICIES: Registry[CorrectionPolicy] = Registry("correction policy")


@CORRECTION_POLICIES.register("sentence_by_sentence")
@dataclass(frozen=True, kw_only=True)
class SentenceBySentence:
    """Answer sentence by sentence; done at the model's end, at `max_passes` sentences, at a pass that completes no sentence
    and at a sentence that repeats the one before, which is dropped."""

    max_passes: int = 8
    max_new_tokens: int = 64
    num_views: int = 2
    view_noise: float = 0.06
    describe: bool = True
    describe_prompt: str = "Describe the image in detail."
    measure_blank: bool = True
    one_sentence_per_pass: bool = False

    def __post_init__(self) -> None:
        check_at_least("max_passes", self.max_passes, 1)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        check_at_least("num_views", self.num_views, 0)
        check_share("view_noise", self.view_noise)
        if self.num_views and not self.view_noise:
            raise ValueError(f"num_views is {self.num_views} with view_noise 0; expected noise above 0, or num_views 0: equal views agree")
        if self.describe and not self.describe_prompt.strip():
            raise ValueError("describe is on with an empty describe_prompt; expected a prompt, or describe off")

    @property
    def skip(self) -> bool:
        return False

    def stop(self) -> tuple[str, ...]:
        # White space belongs to the stop strings: without it decoding would end inside 3.5 and the next pass could not join it.
        return (". ", "? ", "! ", "。", "！", "？") if self.one_sentence_per_pass else ()  # noqa: RUF001

    def accept(self, draft: Draft, text: str, ended: bool) -> Draft:
        if draft.done:
            return draft
        written = self._one_sentence(text, ended) if self.one_sentence_per_pass else split_sentences(text, final=ended)
        accepted = list(draft.sentences)
        for sentence in written:
            if len(accepted) == self.max_passes or (accepted and accepted[-1] == sentence):
                return replace(draft, sentences=tuple(accepted), done=True)
            accepted.append(sentence)
        done = not written or len(accepted) == self.max_passes or (ended and not self._has_more(text))
        return replace(draft, sentences=tuple(accepted), done=done)

    def _has_more(self, text: str) -> bool:
        """Whether a pass of one sentence left further sentences of an ended text behind."""
        return self.one_sentence_per_pass and len(split_sentences(text)) > 1

    def _one_sentence(self, text: str, ended: bool) -> list[str]:
        end = first_sentence_end(text, final=ended)
        if end is None and (stopped := _LAST_STOP.match(text)):
            # The engine stopped at something like `Mr. ` or `U.S. `: cut there, no text is lost, only one pass more is counted.
            end = stopped.end()
        return [] if end is None else [" ".join(text[:end].split())]


@CORRECTION_POLICIES.register("none")
@dataclass(frozen=True)
class NoCorrection:
    """Keep VIG's own answer: `accept` takes it whole, in sentences."""

    @property
    def skip(self) -> bool:
        return True

    @property
    def max_passes(self) -> int:
        return 0

    @property
    def max_new_tokens(self) -> int:
        return 0

    @property
    def num_views(self) -> int:
        return 0

    @property
    def view_noise(self) -> float:
        return 0.0

    @property
    def describe(self) -> bool:
        return False

    @property
    def describe_prompt(self) -> str:
        return ""

    @property
    def measure_blank(self) -> bool:
        return False

    def stop(self) -> tuple[str, ...]:
        return ()

    def accept(self, draft: Draft, text: str, ended: bool) -> Draft:
        return replace(draft, sentences=(*draft.sentences, *split_sentences(text)), done=True)
