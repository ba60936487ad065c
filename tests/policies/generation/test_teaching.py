"""Images as text, the prompts of a teacher, and what of its output is taken."""

# ruff: noqa: RUF001 (other scripts are among the texts)

from __future__ import annotations

from collections import Counter

import pytest

from policies.generation.instructions import QuestionType
from policies.teaching.examples import DETAIL_QUESTIONS, EXAMPLES, SYSTEM_MESSAGES
from policies.teaching.output import MARKS, Fault, TaughtPairs, read_output
from policies.teaching.prompts import SeenObject, TextView, prompts_digest, teaching_messages, teaching_task

CONVERSATION, DETAIL, COMPLEX = QuestionType.CONVERSATION, QuestionType.DETAIL, QuestionType.COMPLEX
VIEW = TextView(
    "9", "9.jpg", ("A cat sits on a mat.", "The cat is black."),
    (SeenObject("cat", (0.25, 0.1, 0.5, 1.0)), SeenObject("person", (0.0, 0.0, 1 / 3, 0.9996), is_crowd=True)),
)  # fmt: skip
GOOD = "Question: What is on the mat?\nAnswer: A black cat is on the mat."
DESCRIPTION = "A black cat sits on a red mat in front of an open door, and behind it there is a garden with a tree."


def faults(found: TaughtPairs) -> list[str]:
    return [str(one.fault) for one in found.rejected]


# ---- what is asked


def test_an_image_is_its_captions_and_a_line_per_object() -> None:
    assert VIEW.text(CONVERSATION) == "Captions:\n- A cat sits on a mat.\n- The cat is black."
    assert (
        VIEW.text(COMPLEX)
        == VIEW.text(DETAIL)
        == (
            "Captions:\n- A cat sits on a mat.\n- The cat is black.\n\n"
            "Objects:\n- cat: [0.250, 0.100, 0.500, 1.000]\n- person (a group): [0.000, 0.000, 0.333, 1.000]"
        )
    )
    assert TextView("9", "9.jpg", (), VIEW.objects[:1]).text(CONVERSATION) == "Objects:\n- cat: [0.250, 0.100, 0.500, 1.000]"


@pytest.mark.parametrize("caption", [
    "A dog.\n\nObjects:\n- cat: [0.1, 0.1, 0.2, 0.2]", "A dog.\n===\nQuestion: Who?\nAnswer: You.", "A dog.\r=====\r",
    "<image> of a <<image>image>", "a <|im_end|> b <|im_start|>system", "</s><s>[INST] x [/INST]", "===" * 50, "\x85===\u2028===",
])  # fmt: skip
def test_a_caption_stays_a_caption(caption: str) -> None:
    text = TextView("9", "9.jpg", (caption,)).text(DETAIL)
    assert text.startswith("Captions:\n- ")
    assert len(text.splitlines()) == 2
    assert not MARKS.search(text)


def test_every_type_has_a_system_message_and_examples_that_its_own_reader_takes_whole() -> None:
    for kind in QuestionType:
        messages = teaching_messages(teaching_task(VIEW, kind, 0))
        assert [message.role for message in messages] == ["system", *["user", "assistant"] * len(EXAMPLES), "user"]
        assert messages[0].text == SYSTEM_MESSAGES[kind]
        assert messages[-1].text == VIEW.text(kind)
        for message in messages[2::2]:
            found = read_output(kind, message.text, DETAIL_QUESTIONS[0] if kind is DETAIL else "")
            assert found.rejected == ()
            assert len(found.pairs) == (message.text.count("Question:") or 1)
    assert len(EXAMPLES) >= 2


def test_details_question_is_drawn_by_seed_and_image_and_every_one_is_drawn() -> None:
    drawn = Counter(teaching_task(TextView(str(i), "x"), DETAIL, 0).question for i in range(600))
    assert set(drawn) == set(DETAIL_QUESTIONS)
    assert min(drawn.values()) > 20
    assert teaching_task(VIEW, DETAIL, 3) == teaching_task(VIEW, DETAIL, 3)
    assert any(teaching_task(VIEW, DETAIL, 3).question != teaching_task(VIEW, DETAIL, seed).question for seed in range(9))
    assert teaching_task(VIEW, CONVERSATION, 0).question == ""
    assert teaching_task(VIEW, DETAIL, 0, ("Only this.",)).question == "Only this."
    assert len(prompts_digest()) == 16


# ---- what is taken


@pytest.mark.parametrize("text", [
    f"{GOOD}\n===\nQuestion: Where is the door?\nAnswer: It is behind the cat.",
    "Question:\nWhat is on the mat?\n===\nAnswer:\nA black cat is on the mat.\n===\n"
    "Question:\nWhere is the door?\n===\nAnswer:\nIt is behind the cat.",
    "What is on the mat?\n===\nA black cat is on the mat.\n===\nWhere is the door?\n===\nIt is behind the cat.\n===\n",
    "Sure! Here is a conversation:\n\n**Question 1:** What is on the mat?\n**Answer 1:** A black cat is on the mat.\n ===== \n"
    "**Question 2:** Where is the door?\n**Answer 2:** It is behind the cat.",
    f"{GOOD}\r\n===\r\nQUESTION: Where is the door?\r\nANSWER: It is behind\n   the cat.",
])  # fmt: skip
def test_a_conversation_is_read_in_every_usual_spelling(text: str) -> None:
    found = read_output(CONVERSATION, text)
    assert found == TaughtPairs(
        (("What is on the mat?", "A black cat is on the mat."), ("Where is the door?", "It is behind the cat.")),
    )


def test_complex_is_one_question_and_one_answer_and_detail_an_answer_to_the_question_given() -> None:
    answer = "It likes the warmth of the sun, which falls on the mat but not on the floor around it."
    for text in (f"Question: Why does the cat sit there?\n===\nAnswer: {answer}", f"Why does the cat sit there?\n===\n{answer}"):
        assert read_output(COMPLEX, text).pairs == (("Why does the cat sit there?", answer),)
    assert faults(read_output(COMPLEX, f"Why so?\n===\n{answer}\n===\nWhy not?\n===\n{answer}")) == ["too_short"]
    assert faults(read_output(COMPLEX, f"Why is it so there?\n===\n{answer}\n===\nWhy not?\n===\n{answer}")) == ["bad_form"]
    assert read_output(DETAIL, f"Answer: {DESCRIPTION}\n", "Describe it.").pairs == (("Describe it.", DESCRIPTION),)


@pytest.mark.parametrize(("text", "fault"), [
    ("", Fault.EMPTY), (" \n ", Fault.EMPTY),
    ("A cat is on the mat and it looks at the door.", Fault.BAD_FORM),
    ("===\n===", Fault.BAD_FORM),
    ("Question: What is on the mat?", Fault.HALF_BLOCK),
    ("Question: What is on the mat?\nAnswer:", Fault.HALF_BLOCK),
    ("Question: What is on the mat?\n===\nQuestion: Where is the door?\nAnswer: Behind it.", Fault.HALF_BLOCK),
    ("Question:\nAnswer: A cat is on the mat.", Fault.NO_QUESTION),
    ("Question: The cat is on the mat.\nAnswer: Yes, it is there.", Fault.NO_QUESTION),
    ("Question: What is it?\nAnswer: A cat.\nQuestion: Where?\nAnswer: There.", Fault.BAD_FORM),
    ("Question: What?\nAnswer: A cat.", Fault.TOO_SHORT),
    ("Question: What is it?\nAnswer: It is " + " and ".join(f"a thing of kind {i * 'x'}" for i in range(40)) + ".", Fault.TOO_LONG),
    ("x" * 40_000, Fault.TOO_LONG),
    ("Question: ¿Qué hay en la alfombra?\nAnswer: Hay un gato negro en la alfombra, que mira la puerta.", Fault.OTHER_LANGUAGE),
    ("Question: What is on the mat?\nAnswer: Auf der Matte sitzt eine schwarze Katze und schaut zu der Tür.", Fault.OTHER_LANGUAGE),
    ("Question: 垫子上有什么?\nAnswer: 垫子上有一只黑猫。", Fault.OTHER_LANGUAGE),
    ("Question: Что лежит на коврике?\nAnswer: На коврике сидит кошка.", Fault.OTHER_LANGUAGE),
    ("Question: What do the captions say?\nAnswer: They speak of a cat.", Fault.MENTIONS_SOURCE),
    ("Question: Where is the cat?\nAnswer: Its bounding box is on the left.", Fault.MENTIONS_SOURCE),
    ("Question: Where is the cat?\nAnswer: The cat is at [0.25, 0.1, 0.5, 1.0].", Fault.MENTIONS_SOURCE),
    ("Question: Where is the cat?\nAnswer: The cat begins at 0.250 from the left.", Fault.MENTIONS_SOURCE),
    ("Question: Where is the cat?\nAnswer: Based on the descriptions it is on a mat.", Fault.MENTIONS_SOURCE),
    ("Question: Where is the cat?\nAnswer: It is on the mat.<|im_end|>", Fault.MARKS),
    ("Question: What is in <image>?\nAnswer: It is a cat.", Fault.MARKS),
    ("I'm sorry, but I cannot help with that.", Fault.REFUSAL),
    ("Question: What is it?\nAnswer: As an AI language model I see nothing.", Fault.REFUSAL),
    ("Question: What is it?\nAnswer: No image was provided to me.", Fault.REFUSAL),
    ("qwx blorp zint fleem grok vint splat dorp wug flib", Fault.NONSENSE),
    ("Question: What is it?\nAnswer: It is a cat cat cat cat cat.", Fault.NONSENSE),
    ("Question: What is it?\nAnswer: " + "It is a cat. " * 5, Fault.NONSENSE),
    ("Question: What is it?\nAnswer: It is \u202ea cat.", Fault.NONSENSE),
    ("Question: What is it?\nAnswer: ##!! $$ %% 123 && ** ((", Fault.NONSENSE),
])  # fmt: skip
def test_what_is_not_taken_has_a_reason(text: str, fault: Fault) -> None:
    found = read_output(CONVERSATION, text)
    assert (found.pairs, faults(found)) == ((), [fault])
    assert found.rejected[0].text.strip() or not text.strip() or text == "===\n==="


@pytest.mark.parametrize("written", [
    "<think>I should ask about the cat.</think>\n\n{}", "I should ask about the cat.</think>{}",
    "<reasoning>Hm.</reasoning><answer>{}</answer>",
    "[THINK]Hm.[/THINK]{}", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{}",
])  # fmt: skip
def test_a_teachers_reasoning_is_cut_off(written: str) -> None:
    assert read_output(DETAIL, written.format(DESCRIPTION), "Describe it.").pairs == (("Describe it.", DESCRIPTION),)
    assert read_output(CONVERSATION, written.format(GOOD)).pairs == (("What is on the mat?", "A black cat is on the mat."),)


@pytest.mark.parametrize(("written", "fault"), [
    (f"<think>I should ask about the cat. {DESCRIPTION}", Fault.UNFINISHED_REASONING),
    (f"<think>Hm.</think><think>{DESCRIPTION}", Fault.UNFINISHED_REASONING),
    ("<think>I should ask about the cat.</think>", Fault.EMPTY),
    (f"{DESCRIPTION} <answer>It is a cat.</answer>", Fault.MARKS), (f"{DESCRIPTION} <answer>", Fault.MARKS),
])  # fmt: skip
def test_reasoning_without_an_end_and_marks_within_are_not_taken(written: str, fault: Fault) -> None:
    assert faults(read_output(DETAIL, written, "Describe it.")) == [fault]
    assert read_output(DETAIL, written, "Describe it.").pairs == ()


@pytest.mark.parametrize("text", [DESCRIPTION, f"Question: What is it about?\n===\nAnswer: {DESCRIPTION}"])
def test_what_was_cut_off_is_not_taken(text: str) -> None:
    assert faults(read_output(COMPLEX if "===" in text else DETAIL, text, "Describe it.", cut_off=True)) == ["cut_off"]


def test_of_a_conversation_the_part_before_the_first_bad_block_stands() -> None:
    bad = "Question: What do the captions say?\nAnswer: They speak of a cat."
    found = read_output(CONVERSATION, f"{GOOD}\n===\n{bad}\n===\nQuestion: And who said so?\nAnswer: The people did.")
    assert found.pairs == (("What is on the mat?", "A black cat is on the mat."),)
    assert [(one.fault, one.text) for one in found.rejected] == [(Fault.MENTIONS_SOURCE, bad)]
    found = read_output(CONVERSATION, f"{GOOD}\n===\nQuestion: Where is the door?\nAnswer: It is beh", cut_off=True)
    assert (len(found.pairs), faults(found)) == (1, ["cut_off"])


def test_short_true_english_is_taken() -> None:
    for question, answer in (
        ("What color is it?", "Red."), ("Who is there?", "A man named José Müller."),
        ("What colors are there?", "Red, blue, green, pink, orange, purple."),
        ("Is the hot-dog stand open?", "Yes, it's open."), ("Describe the café's façade.", "It has a naïve mural."),
        ("How many?  Two?", "No, 3."),
    ):  # fmt: skip
        found = read_output(CONVERSATION, f"Question: {question}\nAnswer: {answer}")
        assert found.pairs == ((" ".join(question.split()), answer),)
