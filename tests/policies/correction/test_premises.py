from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.correction.evidence import Evidence
from policies.correction.premises import MAX_PREMISES, named_objects, premise_questions


@pytest.mark.parametrize(
    ("question", "phrases"),
    [
        ("What color is the ring?", ("ring",)),
        ("What shape is the red object?", ("red object",)),
        ("Is the red circle to the left of the blue star?", ("red circle", "blue star")),
        ("Do the red ring and the blue star have the same size?", ("red ring", "blue star")),
        ("How large is the large blue thing?", ("large blue thing",)),
        ("Is the cross above the red cross?", ("cross", "red cross")),
        ("Where is The  Red\nRing?", ("red ring",)),
        ("Is the red ring larger than the small ring?", ("red ring", "small ring")),
        ("Is the big red dog wet?", ("big red dog",)),
        ("Is the red square above the orange square?", ("red square", "orange square")),
        ("Is the door open or the red one?", ("door",)),
        ("What is the man wearing on the head of the dog?", ("man", "head", "dog")),
        ("What is at the top left?", ()),
        ("Describe the image in detail.", ()),
        ("How many objects are there?", ()),
        ("Is there a red ring?", ()),
        ("Are there more small objects than large objects?", ()),
        ("Where are the dogs?", ()),
        ("Why is the glass on the table's edge?", ("glass", "table")),
        ("Is the very long and winding road wet?", ()),
        ("", ()),
        ("the", ()),
        ("红色的圆在哪里", ()),
    ],
)
def test_definite_phrases_of_objects_are_found(question: str, phrases: tuple[str, ...]) -> None:
    assert named_objects(question) == phrases


def test_a_question_of_many_words_names_a_bounded_number_of_objects() -> None:
    question = " and ".join(f"the ring{number} thing" for number in range(500))
    assert named_objects(question) == tuple(f"ring{number} thing" for number in range(MAX_PREMISES))
    assert named_objects("word " * 2_000) == ()
    assert named_objects("the " * 2_000) == ()


@given(st.text(max_size=80))
def test_any_text_is_read(text: str) -> None:
    assert all(phrase and len(phrase.split()) <= 4 for phrase in named_objects(text))


@pytest.mark.parametrize(
    ("phrase", "questions"),
    [
        ("red ring", ["Is there a red ring?", "How many red rings are there?", "Find: red ring."]),
        ("orange box", ["Is there an orange box?", "How many orange boxes are there?", "Find: orange box."]),
        ("city", ["Is there a city?", "How many cities are there?", "Find: city."]),
        ("boy", ["Is there a boy?", "How many boys are there?", "Find: boy."]),
    ],
)
def test_a_phrase_is_put_into_the_templates(phrase: str, questions: list[str]) -> None:
    assert premise_questions(phrase, ("Is there {a phrase}?", "How many {phrases} are there?", "Find: {phrase}.")) == questions


@pytest.mark.parametrize(
    ("reply", "refutes"),
    [
        ("No, there is no red ring.", True),
        ("No.", True),
        ("There are no red rings.", True),
        ("None", True),
        ("There is not.", True),
        ("There are 2 red rings.", True),
        ("Three.", True),
        ("There are 12.", True),
        ("red ring none, red ring none.", True),
        ("red ring 2, red ring 2.", True),
        ("Yes, there is a red ring.", False),
        ("There is 1 red ring.", False),
        ("One.", False),
        ("red ring small red ring top left, red ring none.", False),
        ("Yes, there is one, and no other.", False),
        ("A knotted ring.", False),
        ("", False),
    ],
)
def test_a_reply_refutes_or_not(reply: str, refutes: bool) -> None:
    assert bool(Evidence().refutation().search(reply)) is refutes


def test_refutations_are_an_option() -> None:
    assert re.search(Evidence(premise_refutations=("^nada",)).refutation(), "Nada de nada")
    with pytest.raises(ValueError, match="not a regular expression"):
        Evidence(premise_refutations=("(",))
