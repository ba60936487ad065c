from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.correction import CORRECTION_POLICIES, Draft
from policies.registry import UnknownPolicyError

ANSWER = "The ring is red. The star is 3.5 cm wide. So it is small."
SENTENCES = ("The ring is red.", "The star is 3.5 cm wide.", "So it is small.")


def test_one_pass_to_the_end_gives_every_sentence() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence")
    draft = policy.accept(Draft("Why?"), f" {ANSWER}", ended=True)
    assert draft == Draft("Why?", SENTENCES, done=True)
    assert draft.text == ANSWER
    assert policy.stop() == ()


def test_a_pass_cut_off_by_its_token_budget_goes_on_after_its_last_whole_sentence() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence")
    draft = policy.accept(Draft("Why?"), "The ring is red. The star is 3.", ended=False)
    assert (draft.sentences, draft.done) == (SENTENCES[:1], False)
    draft = policy.accept(draft, " The star is 3.5 cm wide. So it is small.", ended=True)
    assert (draft.sentences, draft.done) == (SENTENCES, True)


@pytest.mark.parametrize(("text", "ended"), [("", True), ("  ", False), ("The ring is", False)])
def test_a_pass_that_adds_no_sentence_ends_the_answer(text: str, ended: bool) -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence")
    assert policy.accept(Draft("Why?", ("So.",)), text, ended) == Draft("Why?", ("So.",), done=True)


def test_an_ended_text_keeps_an_unfinished_sentence() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence")
    assert policy.accept(Draft("Why?"), "Two. A red ring", ended=True).sentences == ("Two.", "A red ring")


def test_a_repeated_sentence_is_dropped_and_ends_the_answer() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence")
    draft = policy.accept(Draft("Why?", ("It is red.",)), "It is red. It is small.", ended=False)
    assert draft == Draft("Why?", ("It is red.",), done=True)


def test_an_answer_has_at_most_max_passes_sentences() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence", {"max_passes": 2})
    assert policy.accept(Draft("Why?"), ANSWER, ended=True) == Draft("Why?", SENTENCES[:2], done=True)


def test_a_done_draft_stays_as_it_is() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence")
    done = Draft("Why?", ("So.",), done=True)
    assert policy.accept(done, "More of it. ", ended=False) is done


@given(st.lists(st.sampled_from(["It is red.", "It is 3.5 wide.", "Mr. Ring is in the U.S. now.", "Why?", "So yes"]), unique=True))
def test_sentence_by_sentence_and_one_pass_give_the_same_answer(sentences: list[str]) -> None:
    text = " ".join(sentences)
    at_once = CORRECTION_POLICIES.build("sentence_by_sentence").accept(Draft("q"), text, ended=True)
    stepwise = CORRECTION_POLICIES.build("sentence_by_sentence", {"one_sentence_per_pass": True})
    draft = Draft("q")
    while not draft.done:
        rest = text[len(draft.text) :]
        ends = [rest.index(stop, 1) + len(stop) for stop in stepwise.stop() if stop in rest[1:]]
        draft = stepwise.accept(draft, rest[: min(ends)] if ends else rest, ended=not ends)
    assert draft.text == at_once.text


def test_a_pass_of_one_sentence_keeps_only_the_first() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence", {"one_sentence_per_pass": True})
    assert policy.accept(Draft("Why?"), "It is red. It", ended=False) == Draft("Why?", ("It is red.",))
    assert policy.accept(Draft("Why?"), "It is red. It is small.", ended=True) == Draft("Why?", ("It is red.",))
    assert policy.accept(Draft("Why?"), "It is red.", ended=True).done


def test_none_keeps_the_answer_of_vig() -> None:
    policy = CORRECTION_POLICIES.build("none")
    assert policy.skip
    assert (policy.num_views, policy.describe, policy.measure_blank) == (0, False, False)
    assert policy.accept(Draft("Why?"), ANSWER, ended=True) == Draft("Why?", SENTENCES, done=True)


def test_defaults_measure_everything() -> None:
    policy = CORRECTION_POLICIES.build("sentence_by_sentence")
    assert not policy.skip
    assert (policy.max_passes, policy.max_new_tokens, policy.num_views, policy.view_noise) == (8, 64, 2, 0.06)
    assert (policy.describe, policy.describe_prompt, policy.measure_blank) == (True, "Describe the image in detail.", True)


@pytest.mark.parametrize(
    "options",
    [
        {"max_passes": 0},
        {"max_new_tokens": 0},
        {"num_views": -1},
        {"view_noise": 1.5},
        {"view_noise": 0.0},
        {"describe_prompt": " "},
        {"passes": 3},
    ],
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(UnknownPolicyError):
        CORRECTION_POLICIES.build("sentence_by_sentence", options)
