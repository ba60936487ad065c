from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.correction.methods import (
    CORRECTION_POLICIES,
    Candidate,
    Draft,
    Grounded,
    NoCorrection,
    SentenceBySentence,
    Step,
    next_sentence,
)
from policies.registry import UnknownPolicyError

ANSWER = "The ring is red. The star is 3.5 cm wide. So it is small."
SENTENCES = ("The ring is red.", "The star is 3.5 cm wide.", "So it is small.")


def test_one_pass_to_the_end_gives_every_sentence() -> None:
    policy = SentenceBySentence()
    draft = policy.accept(Draft("Why?"), f" {ANSWER}", ended=True)
    assert draft == Draft("Why?", SENTENCES, done=True)
    assert draft.text == ANSWER
    assert policy.stop() == ()


def test_a_pass_cut_off_by_its_token_budget_goes_on_after_its_last_whole_sentence() -> None:
    policy = SentenceBySentence()
    draft = policy.accept(Draft("Why?"), "The ring is red. The star is 3.", ended=False)
    assert (draft.sentences, draft.done) == (SENTENCES[:1], False)
    draft = policy.accept(draft, " The star is 3.5 cm wide. So it is small.", ended=True)
    assert (draft.sentences, draft.done) == (SENTENCES, True)


@pytest.mark.parametrize(("text", "ended"), [("", True), ("  ", False), ("The ring is", False)])
def test_a_pass_that_adds_no_sentence_ends_the_answer(text: str, ended: bool) -> None:
    policy = SentenceBySentence()
    assert policy.accept(Draft("Why?", ("So.",)), text, ended) == Draft("Why?", ("So.",), done=True)


def test_an_ended_text_keeps_an_unfinished_sentence() -> None:
    policy = SentenceBySentence()
    assert policy.accept(Draft("Why?"), "Two. A red ring", ended=True).sentences == ("Two.", "A red ring")


def test_a_repeated_sentence_is_dropped_and_ends_the_answer() -> None:
    policy = SentenceBySentence()
    draft = policy.accept(Draft("Why?", ("It is red.",)), "It is red. It is small.", ended=False)
    assert draft == Draft("Why?", ("It is red.",), done=True)


def test_as_in_the_published_code_a_repetition_is_a_sentence_like_any_other() -> None:
    policy = SentenceBySentence(end_at_repetition=False, max_passes=4)
    draft = policy.accept(Draft("Why?", ("It is red.",)), "It is red. It is small.", ended=True)
    assert draft == Draft("Why?", ("It is red.", "It is red.", "It is small."), done=True)


def test_an_answer_has_at_most_max_passes_sentences() -> None:
    policy = SentenceBySentence(max_passes=2)
    assert policy.accept(Draft("Why?"), ANSWER, ended=True) == Draft("Why?", SENTENCES[:2], done=True)


def test_a_done_draft_stays_as_it_is() -> None:
    policy = SentenceBySentence()
    done = Draft("Why?", ("So.",), done=True)
    assert policy.accept(done, "More of it. ", ended=False) is done


@given(st.lists(st.sampled_from(["It is red.", "It is 3.5 wide.", "Mr. Ring is in the U.S. now.", "Why?", "So yes"]), unique=True))
def test_sentence_by_sentence_and_one_pass_give_the_same_answer(sentences: list[str]) -> None:
    text = " ".join(sentences)
    at_once = SentenceBySentence().accept(Draft("q"), text, ended=True)
    stepwise = SentenceBySentence(one_sentence_per_pass=True)
    draft = Draft("q")
    while not draft.done:
        rest = text[len(draft.text) :]
        ends = [rest.index(stop, 1) + len(stop) for stop in stepwise.stop() if stop in rest[1:]]
        draft = stepwise.accept(draft, rest[: min(ends)] if ends else rest, ended=not ends)
    assert draft.text == at_once.text


def test_a_pass_of_one_sentence_keeps_only_the_first() -> None:
    policy = SentenceBySentence(one_sentence_per_pass=True)
    assert policy.accept(Draft("Why?"), "It is red. It", ended=False) == Draft("Why?", ("It is red.",))
    assert policy.accept(Draft("Why?"), "It is red. It is small.", ended=True) == Draft("Why?", ("It is red.",))
    assert policy.accept(Draft("Why?"), "It is red.", ended=True).done


@pytest.mark.parametrize("cycle", [1, 2, 3])
@pytest.mark.parametrize("one_sentence_per_pass", [False, True])
def test_an_answer_that_repeats_itself_for_ever_is_cut_at_its_first_repetition(cycle: int, one_sentence_per_pass: bool) -> None:
    sentences = ("It is red.", "It is small.", "It is far.")[:cycle]
    policy = SentenceBySentence(one_sentence_per_pass=one_sentence_per_pass, max_passes=50)
    endless = " ".join(["So.", *sentences * 20])
    draft, passes = Draft("Why?"), 0
    while not draft.done:
        said = len(draft.sentences)
        rest = " ".join(["So.", *sentences * 20][said:]) if one_sentence_per_pass else endless
        draft = policy.accept(draft, rest, ended=False)
        passes += 1
    assert draft.sentences == ("So.", *sentences)
    assert passes == (len(draft.sentences) + 1 if one_sentence_per_pass else 1)


@pytest.mark.parametrize("policy", [SentenceBySentence(), SentenceBySentence(one_sentence_per_pass=True)])
def test_a_text_without_any_sentence_end_is_kept_when_the_model_ended_and_dropped_when_it_did_not(policy: SentenceBySentence) -> None:
    endless = "red ring " * 500
    assert policy.accept(Draft("Why?"), endless, ended=True) == Draft("Why?", (endless.strip(),), done=True)
    assert policy.accept(Draft("Why?"), endless, ended=False) == Draft("Why?", done=True)


def test_text_that_is_not_latin_is_answered_sentence_by_sentence() -> None:
    policy = SentenceBySentence(one_sentence_per_pass=True)
    assert "。" in policy.stop()
    draft = policy.accept(Draft("这是什么？"), "这是红色的。", ended=False)  # noqa: RUF001
    assert policy.accept(draft, "它在中间", ended=True) == Draft("这是什么？", ("这是红色的。", "它在中间"), done=True)  # noqa: RUF001


@pytest.mark.parametrize(
    ("text", "ended", "step"),
    [
        ("It is red. ", False, Step("It is red.", False)),
        ("It is red.", True, Step("It is red.", True)),
        ("A cat\nA dog", True, Step("A cat", False)),
        ("Mr. ", False, Step("Mr.", False)),
        ("It is", False, None),
        ("", True, None),
    ],
)
def test_the_next_sentence_of_a_pass(text: str, ended: bool, step: Step | None) -> None:
    assert next_sentence(text, ended) == step


# ---- grounded


def candidate(sentence: str, gain: float, *, logprob: float = -0.1, view_logprob: float = 0.0, ended: bool = False) -> Candidate:
    return Candidate(Step(sentence, ended), logprob, gain, view_logprob)


def chosen(policy: Grounded, draft: Draft, candidates: list[Candidate]) -> Draft:
    return policy.accept(draft, policy.best(draft, candidates))


def test_the_sentence_that_the_image_supports_most_is_kept() -> None:
    draft = chosen(Grounded(), Draft("Why?"), [candidate("It is red.", 0.5), candidate("It is blue.", 1.5), candidate("It is.", 1.0)])
    assert draft == Draft("Why?", ("It is blue.",))


def test_likelihood_and_gain_are_weighed() -> None:
    candidates = [candidate("It is red.", 0.5, logprob=-0.1), candidate("A unicorn.", 2.5, logprob=-1.1)]
    assert chosen(Grounded(image_weight=0.49), Draft("Why?"), candidates).sentences == ("It is red.",)
    assert chosen(Grounded(image_weight=0.51), Draft("Why?"), candidates).sentences == ("A unicorn.",)


def test_the_best_sentence_is_dropped_when_other_views_do_not_confirm_it() -> None:
    policy = Grounded(min_view_logprob=-0.2)
    guessed, other = candidate("It is red.", 2.0, view_logprob=-0.3), candidate("It is blue.", 1.0)
    assert chosen(policy, Draft("Why?"), [guessed, other]) == Draft("Why?", dropped=((0, "It is red."),))
    seen = candidate("It is red.", 2.0, view_logprob=-0.1)
    assert chosen(policy, Draft("Why?"), [seen, other]) == Draft("Why?", ("It is red.",))


def test_a_sentence_that_nothing_grounds_is_dropped_and_the_answer_goes_on_after_it() -> None:
    policy = Grounded(min_gain=0.2)
    draft = chosen(policy, Draft("Why?"), [candidate("It is red.", 0.9)])
    draft = chosen(policy, draft, [candidate("It is mine.", 0.1), candidate("It is ours.", -1.0)])
    assert (draft.text, draft.written, draft.done) == ("It is red.", ("It is red.", "It is mine."), False)
    draft = chosen(policy, draft, [candidate("It is small.", 0.9, ended=True)])
    assert (draft.text, draft.written) == ("It is red. It is small.", ("It is red.", "It is mine.", "It is small."))
    assert draft.dropped == ((1, "It is mine."),)
    assert draft.done
    assert chosen(policy, draft, [candidate("More.", 9.0)]) is draft


@given(st.lists(st.sampled_from([-1.0, 1.0]), max_size=8))
def test_what_was_written_keeps_its_order(gains: list[float]) -> None:
    policy, draft = Grounded(min_gain=0.0, max_passes=9), Draft("Why?")
    for number, gain in enumerate(gains):
        draft = chosen(policy, draft, [candidate(f"Number {number}.", gain)])
    assert draft.written == tuple(f"Number {number}." for number in range(len(gains)))
    assert draft.sentences == tuple(f"Number {number}." for number, gain in enumerate(gains) if gain > 0)


def test_grounding_ends_where_the_greedy_text_does_and_at_max_passes() -> None:
    assert chosen(Grounded(), Draft("Why?"), []) == Draft("Why?", done=True)
    assert chosen(Grounded(max_passes=1), Draft("Why?"), [candidate("No.", -9.0)]) == Draft("Why?", dropped=((0, "No."),), done=True)


@pytest.mark.parametrize("gain", [1.0, -1.0])
@pytest.mark.parametrize("cycle", [1, 2, 3])
def test_grounding_ends_at_a_loop_of_kept_or_dropped_sentences(gain: float, cycle: int) -> None:
    policy, draft = Grounded(max_passes=50), Draft("Why?")
    for number in range(30):
        draft = chosen(policy, draft, [candidate(f"Number {number % cycle}.", gain), candidate("Other.", gain - 0.5)])
    assert draft.done
    assert len(draft.written) == cycle


def test_a_sampled_sentence_that_repeats_is_not_chosen() -> None:
    candidates = [candidate("It is small.", 0.5), candidate("It is red.", 2.0)]
    assert chosen(Grounded(), Draft("Why?", ("It is red.",)), candidates).sentences == ("It is red.", "It is small.")


def test_none_asks_and_measures_nothing_unless_told() -> None:
    policy = CORRECTION_POLICIES.build("none")
    assert isinstance(policy, NoCorrection)
    assert policy.skip
    assert (policy.num_views, policy.describe, policy.measure_blank, policy.check_premises) == (0, False, False, False)
    assert CORRECTION_POLICIES.build("none", {"num_views": 1}).num_views == 1
    with pytest.raises(UnknownPolicyError, match="max_passes"):
        CORRECTION_POLICIES.build("none", {"max_passes": 1})


def test_defaults_measure_everything() -> None:
    policy = SentenceBySentence()
    assert not policy.skip
    assert (policy.max_passes, policy.max_new_tokens, policy.num_views, policy.view_noise) == (8, 64, 2, 0.06)
    assert not policy.check_premises
    assert (policy.describe, policy.describe_prompt, policy.measure_blank) == (True, "Describe the image in detail.", True)


@pytest.mark.parametrize(
    "options",
    [
        {"max_passes": 0},
        {"max_new_tokens": 0},
        {"num_views": -1},
        {"view_noise": 1.5},
        {"view_noise": 0.0, "view_shift": 0.0},
        {"view_shift": 1.5},
        {"describe_prompt": " "},
        {"passes": 3},
        {"premise_questions": ["Is it there?"]},
        {"premise_questions": "Is there {a phrase}?"},
        {"premise_refutations": ["("]},
        {"max_question_words": 0},
        {"num_short_answers": -1},
    ],
)
@pytest.mark.parametrize("name", ["sentence_by_sentence", "grounded"])
def test_bad_options_are_refused(name: str, options: dict) -> None:
    with pytest.raises(UnknownPolicyError):
        CORRECTION_POLICIES.build(name, options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_candidates": 0},
        {"temperature": 0.0},
        {"image_weight": -0.1},
        {"num_looks": -1},
        {"min_view_logprob": 0.1},
        {"num_looks": 1, "view_noise": 0.0, "view_shift": 0.0, "num_views": 0},
        {"min_gain": float("nan")},
    ],
)
def test_bad_options_of_grounded_are_refused(options: dict) -> None:
    with pytest.raises(UnknownPolicyError, match="expected"):
        CORRECTION_POLICIES.build("grounded", options)


def test_grounded_without_alternatives_or_noise_is_fine() -> None:
    Grounded(num_candidates=1, temperature=0.0, num_looks=0, view_noise=0.0, view_shift=0.0, num_views=0)
