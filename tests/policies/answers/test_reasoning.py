"""What of a reasoning model's text is its answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.answers.reasoning import final_answer, final_text, without_reasoning


@pytest.mark.parametrize("reasoned", [
    "<think>Is it B? No, A.</think>\n\nC", "<think>\n\n</think>\n\nC", "<THINKING> B </THINKING>C", "<reasoning>B</reasoning> C",
    "< think >B</ think > C", "<think budget='3'>B</think>C", "<analysis>Plain.</analysis>C", "<seed:think>B</seed:think>C",
    "Is it B? No.</think>C", "B </thinking>\nC", "<think>The tag </think> ends it. B</think> C", "<think>a <think>b</think> B</think>C",
    "<think>B</thinking>C", "<think>B</think><think>A</think>C", "C<think>Why? It is not B.</think>",
    "<|begin_of_thought|>B<|end_of_thought|>\n<|begin_of_solution|>C<|end_of_solution|>",
    "<|START_THINKING|>B<|END_THINKING|><|START_RESPONSE|>C<|END_RESPONSE|>", "[THINK]B[/THINK]C", "B[/THINK]C",
    "\u25c1think\u25b7B\u25c1/think\u25b7C", "<|channel>thought\nB\n<channel|>C", "<|channel>thought\n<channel|>C<turn|>",
    "<unused94>thought\nB<unused95>C",
    "<|channel|>analysis<|message|>B<|end|><|start|>assistant<|channel|>final<|message|>C<|return|>", "analysisIs it B?assistantfinalC",
    "Here is my thought process: B. \n\nHere is my response: C",
    "Here are my reasoning steps:\nB\n[BEGIN FINAL RESPONSE]\nC\n[END FINAL RESPONSE]",
    "<think>B</think><answer>C</answer>", "<think><answer>B</answer>?</think><answer> C </answer>", "I see. <answer>C", "C</answer>",
    "<think>B</think><answer><|begin_of_box|>C<|end_of_box|></answer>", "<answer>C</answer>\n<answer>C</answer>",
    "<SUMMARY>x</SUMMARY><CAPTION>x</CAPTION><REASONING>B</REASONING><CONCLUSION>C</CONCLUSION>", "C<|im_end|>", "C</s>",
])  # fmt: skip
def test_reasoning_and_what_wraps_the_answer_are_no_part_of_it(reasoned: str) -> None:
    assert final_text(reasoned).strip() == "C"
    assert final_answer(reasoned).strip() == "C"


@pytest.mark.parametrize("boxed", [
    r"\boxed{C}", r"So it is $\boxed{\text{C}}$.", r"\[\boxed{\mathbf{\text{C}}}\]", r"Fill \boxed{}: \boxed{C}", r"\boxed{C",
    r"\boxed{\boxed{C}}",
    r"<think>\boxed{B}</think> The answer is \boxed{C}, not B.",
])  # fmt: skip
def test_a_box_holds_the_short_answer(boxed: str) -> None:
    assert final_answer(boxed) == "C"


def test_a_text_for_readers_keeps_what_stands_beside_a_box() -> None:
    assert final_text(r"The sum is \boxed{4}, as 2 + 2 is.") == r"The sum is \boxed{4}, as 2 + 2 is."


@pytest.mark.parametrize("cut", ["<think>Is it B?", "[THINK]B", "\u25c1think\u25b7B", "<|channel>thought\nB", "C <think> or is it",
                                 "<|channel|>analysis<|message|>B", "<think>a</think>B<think>no, "])  # fmt: skip
def test_reasoning_without_an_end_is_no_answer(cut: str) -> None:
    assert without_reasoning(cut) is None
    assert final_answer(cut) == ""


def test_reasoning_alone_is_an_empty_answer() -> None:
    assert without_reasoning("<think>Is it B?</think>\n") == ""


def test_answers_that_differ_are_all_kept() -> None:
    assert final_answer("<answer>B</answer> or <answer>C</answer>") == "B\nC"


@pytest.mark.parametrize("plain", [
    "", "C", "I think it is a cat.", "x < think > y"[:5], "A response to the analysis.", "a [thinking cap] b", "It says <b>no</b>.",
    "analysis of the picture", " spaces stay\n", "{boxed}",
])  # fmt: skip
def test_other_texts_stay_as_they_are(plain: str) -> None:
    assert without_reasoning(plain) == final_text(plain) == final_answer(plain) == plain


PIECES = st.sampled_from(("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "{", "}", "[THINK]", "[/THINK]", "B", " ", "\n"))


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
def test_nothing_of_the_marks_of_reasoning_is_left(text: str) -> None:
    answer = final_answer(text)
    assert len(answer) <= len(text)
    assert not any(mark in answer.lower() for mark in ("<think>", "</think>", "[think]", "[/think]"))


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<answer>", "\\boxed{", "<think", "< ", "analysis", "[", "\\text{", "<|channel|>final"]
)
def test_long_texts_are_read_in_linear_time(piece: str) -> None:
    started = time.monotonic()
    final_answer(piece * (40_000 // len(piece)))
    assert time.monotonic() - started < 2
