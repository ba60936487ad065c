# ruff: noqa: RUF001
from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.correction.sentences import LONGEST_CYCLE, first_sentence_end, repeats, split_sentences

PIECES = [
    "red", "The", "and", "It", "Bob", "3", "3.5", "1.", "Mr.", "e.g.", "U.S.", "etc.", "No.", "J.", "St.", "...", "…", ".", "!", "?", "?!",
    '"', "”", ")", "(", "。", "！", "」", "؟", "।", "- ", "•", "\n", " ", "  ", "ring.", 'it."', "Ph.D.", "你好",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).flatmap(
    lambda pieces: st.lists(st.sampled_from(["", " "]), min_size=len(pieces), max_size=len(pieces)).map(
        lambda gaps: "".join(piece + gap for piece, gap in zip(pieces, gaps, strict=True))
    )
)


@pytest.mark.parametrize(
    "sentences",
    [
        ["The ring is red.", "It is large."],
        ["It is 3.5 cm wide.", "That is small."],
        ["Mr. Smith and Dr. Jones met.", "They talked."],
        ["Some animals, e.g. dogs, i.e. pets, bark.", "Cats do not."],
        ["He lives in the U.S. and works there.", "She does not."],
        ["He lives in the U.S.", "The house is big."],
        ["J. R. Tolkien wrote it.", "We read it."],
        ["It was taken at 5 p.m. on Monday.", "It rained."],
        ["There are apples, pears, etc. on it.", "Nobody eats."],
        ["There are apples, pears, etc.", "Nobody eats."],
        ["The house is on Main St. near St. Mary.", "It is old."],
        ["Well... maybe it is.", "Who knows…", "We do not."],
        ["Really?!", "Yes!", "No.", "It is not."],
        ["See No. 5 in Fig. 2 here.", "It is red."],
        ['She said "Stop!" and left.', 'He said "No."', "Then he left."],
        ["It is a ring (or is it?) of gold.", "(It is red.)", "Fine."],
        ["1. A red ring.", "2. A blue star."],
        ["There are 3.", "The others hide."],
        ["Is it 3.5 cm, 1,000.25 m or .5 m?", "It is 2.", "No more."],
        ["Dr. No met Prof. X at No. 5 in the U.S. Senate.", "They left."],
        ['He said "Go."', "Then he went."],
        ["(See Fig. 3.)", "It shows a ring (red, ca. 3 cm) and a star.", "[So yes.]"],
        ["Is it red?", "Is it blue?"],
        ["هل هي حمراء؟", "نعم، هي حمراء۔", "شكرا."],
        ["यह लाल है।", "वह नीला है॥", "हाँ।"],
        ["Visit example.com for more.", "It helps."],
        ["No end mark here"],
    ],
)
def test_sentences_are_told_apart(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences


def test_full_width_marks_need_no_space() -> None:
    assert split_sentences("这是红色的。它在哪里？「在中间！」好") == ["这是红色的。", "它在哪里？", "「在中间！」", "好"]


def test_the_items_of_a_list_are_sentences() -> None:
    assert split_sentences("1. A red cat.\n2. A blue dog. It sleeps.\n") == ["1. A red cat.", "2. A blue dog.", "It sleeps."]
    assert split_sentences("- A red cat\n- Dr. Who\n* 3.5 cm\n• So.") == ["- A red cat", "- Dr. Who", "* 3.5 cm", "• So."]


def test_a_line_break_ends_a_sentence() -> None:
    assert split_sentences("Two things:\n1. A red ring\n2. A blue star\n\nThat is all") == [
        "Two things:",
        "1. A red ring",
        "2. A blue star",
        "That is all",
    ]


@pytest.mark.parametrize(
    "text", ["", " \n ", "The ring", "It is 3.", "It is red.", 'It is "red."', "In the U.S. Th", "See No. ", "Wait... "]
)
def test_a_prefix_that_could_go_on_is_undecided(text: str) -> None:
    assert first_sentence_end(text, final=False) is None


@pytest.mark.parametrize(
    ("text", "end"), [("It is red. ", 10), ('It is "red." Th', 12), ("In the U.S. The ", 11), ("A\nb", 1), ("  Why? ", 6), ("好。x", 2)]
)
def test_a_prefix_that_holds_a_sentence_is_decided(text: str, end: int) -> None:
    assert first_sentence_end(text, final=False) == end


def test_the_rest_of_a_final_text_is_a_sentence() -> None:
    assert first_sentence_end(" The ring  ", final=True) == 9
    assert first_sentence_end("  \n", final=True) is None


@settings(max_examples=300)
@given(TEXTS)
def test_joined_sentences_are_the_text_again(text: str) -> None:
    joined = " ".join(split_sentences(text))
    assert "".join(joined.split()) == "".join(text.split())
    if not set("。！؟।") & set(text):
        assert joined == " ".join(text.split())


@settings(max_examples=300)
@given(TEXTS)
def test_what_is_decided_on_a_prefix_stays(text: str) -> None:
    whole = first_sentence_end(text, final=True)
    for length in range(len(text) + 1):
        end = first_sentence_end(text[:length], final=False)
        assert end is None or end == whole


@settings(max_examples=100)
@given(st.text(max_size=40))
def test_any_text_is_split_without_loss(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence.strip() == sentence != "" for sentence in sentences)


@settings(max_examples=100)
@given(TEXTS)
def test_sentences_of_a_prefix_are_the_first_of_the_text(text: str) -> None:
    sentences = split_sentences(text)
    for length in range(len(text) + 1):
        found = split_sentences(text[:length], final=False)
        assert found == sentences[: len(found)]


@pytest.mark.parametrize("text", ["Mr. " * 20_000, "It is red. " * 5_000, "." * 50_000, "!? " * 10_000, "word " * 50_000, "。" * 20_000])
def test_a_long_text_is_split_in_bounded_time(text: str) -> None:
    started = time.process_time()
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    assert time.process_time() - started < 20


def test_a_loop_is_known_by_its_first_repeated_sentence() -> None:
    said = ("A.", "B.", "C.", "D.")
    assert [repeats(sentence, said) for sentence in ("D.", "C.", "B.")] == [True] * LONGEST_CYCLE
    assert not repeats("A.", said)
    assert not repeats("A.", ())
