"""CHAIR: finding objects in captions, both ways, and the two shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.benchmarks import Document
from policies.benchmarks.captions.chair_words import (
    PublishedFinder,
    WordFinder,
    parse_synonyms,
    plural,
    singular_published,
    tokens_published,
)
from policies.benchmarks.captions.coco_objects import synonym_lists
from tests.policies.benchmarks.make import document, faults, lines, score

WORDS = """person, man, woman, child, rider
bus, minibus
boat, canoe
train
horse, pony
knife
tie, bow tie
wine glass
hot dog
dog, puppy
toilet
chair, seat
cell phone, iPhone
dining table, table
teddy bear
mouse
"""
FINDER = WordFinder(parse_synonyms(WORDS))
OWN = WordFinder(synonym_lists())
PUBLISHED = PublishedFinder(parse_synonyms(WORDS))


def found(caption: str) -> list[str]:
    return [category for _, category in FINDER.find(caption)]


@pytest.mark.parametrize(
    ("caption", "categories"),
    [
        ("A bus beside two buses.", ["bus", "bus"]), ("Men, women and children", ["person"] * 3), ("canoes with ties", ["boat", "tie"]),
        ("a WINE GLASS, two wine glasses, a glass", ["wine glass", "wine glass"]), ("a hot dog for the dog", ["hot dog", "dog"]),
        ("hot-dogs and a wine-glass", ["hot dog", "wine glass"]), ("a dog-friendly bar", []), ("the man's bow tie", ["person", "tie"]),
        ("ponies, puppies, mice and knives", ["horse", "dog", "mouse", "knife"]), ("an iPhone", ["cell phone"]), ("home plate", []),
        ("a train on train tracks", ["train"]), ("a baby horse and an adult animal", ["horse"]), ("passenger trains", ["train"]),
        ("the toilet seat", ["toilet"]), ("the seat of the toilet", ["toilet"]), ("a seat", ["chair"]), ("businessmen", []), ("", []),
        ("teddy bears on a table", ["teddy bear", "dining table"]),
    ],
)  # fmt: skip
def test_objects_are_found_in_singular_and_plural(caption: str, categories: list[str]) -> None:
    assert found(caption) == categories


@pytest.mark.parametrize(
    ("caption", "categories"),
    [
        ("A bus beside two buses.", ["bus"]),
        ("canoes with ties", []),
        ("a wine glass", ["wine glass"]),
        ("the seat of the toilet", ["toilet"]),
    ],
)
def test_the_public_way_makes_every_word_singular_first(caption: str, categories: list[str]) -> None:
    assert [category for _, category in PUBLISHED.find(caption)] == categories


@pytest.mark.parametrize(
    ("word", "singular"),
    [("bus", "bu"), ("buses", "bus"), ("glass", "glas"), ("women", "woman"), ("ties", "ty"), ("canoes", "cano"), ("knives", "knife"),
     ("gloves", "glove"), ("mice", "mouse"), ("scissors", "scissors"), ("people", "person"), ("puppies", "puppy"), ("benches", "bench")],
)  # fmt: skip
def test_the_public_singular(word: str, singular: str) -> None:
    assert singular_published(word) == singular


def test_the_public_tokens_part_marks_and_clitics() -> None:
    assert tokens_published("the man's dog, (a pup), isn't 3.5 ft. long: end.") == [
        "the", "man", "'s", "dog", ",", "(", "a", "pup", ")", ",", "is", "n't", "3.5", "ft", ".", "long", ":", "end", ".",
    ]  # fmt: skip


@pytest.mark.parametrize("words", synonym_lists(), ids=lambda words: words[0])
def test_every_word_of_our_own_list_is_found_in_singular_and_plural(words: list[str]) -> None:
    for word in words:
        for form in (word, plural(word)):
            assert [category for _, category in OWN.find(f"There is the {form}.")] == [words[0]], form


def test_our_own_list_has_coco_s_categories_and_no_word_twice() -> None:
    lists = synonym_lists()
    words = [word for one in lists for word in one]
    assert len(lists) == 80
    assert sorted(words) == sorted(set(words))


GROUND_TRUTH = lines(
    {"image_id": 1, "captions": ["A man on a pony."], "instance_categories": ["bus", "bus"]},
    {"image_id": 2, "captions": [], "instance_categories": []},
    name="ground_truth.jsonl",
)


def test_mentions_are_held_against_annotations_and_human_captions() -> None:
    predictions = lines({"image_id": 1, "caption": "A rider, a horse, a bus and a dog."}, {"image_id": 2, "caption": "Nothing."})
    scored = score("chair", [GROUND_TRUTH], predictions, synonyms=WORDS)
    assert (scored["chair_i"], scored["chair_s"]) == (25, 50)
    assert (scored["num_mentions"], scored["num_hallucinated"], scored["num_captions"]) == (4, 1, 2)


def test_sets_of_captions_are_scored_apart() -> None:
    rows = [{"image_id": 1, "set": "a", "caption": "a dog"}, {"image_id": 1, "set": "b", "caption": "a man"}]
    scored = score("chair", [GROUND_TRUTH], lines(*rows), synonyms=WORDS)
    assert scored["chair_i"] == 50
    assert {name: of["chair_s"] for name, of in scored["by_set"].items()} == {"a": 100, "b": 0}
    assert "appears twice" in faults("chair", [GROUND_TRUTH], lines(rows[0], rows[0]))[0]


@given(st.lists(st.sampled_from(("a dog", "a bus", "two men and a kite", "nothing")), min_size=1, max_size=6))
def test_shares_do_not_depend_on_the_order_of_captions(captions: list[str]) -> None:
    rows = [{"image_id": 1, "set": str(index), "caption": caption} for index, caption in enumerate(captions)]
    one, turned = (score("chair", [GROUND_TRUTH], lines(*some)) for some in (rows, rows[::-1]))
    assert (one["chair_i"], one["chair_s"]) == (turned["chair_i"], turned["chair_s"])
    assert 0 <= one["chair_i"] <= 100
    assert 0 <= one["chair_s"] <= 100


def coco() -> tuple[Document, Document]:
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    objects = {"categories": [{"id": 18, "name": "dog"}], "annotations": [{"image_id": 1, "category_id": 18}], "images": images}
    captions = {"annotations": [{"image_id": 2, "caption": "A man."}], "images": images}
    return document(objects, "instances.json"), document(captions, "captions.json")


def test_coco_s_own_files_are_read_together() -> None:
    predictions = document([{"image_id": 1, "caption": "A dog."}, {"image_id": 2, "caption": "A man and a dog."}])
    scored = score("chair", list(coco()), predictions)
    assert (scored["num_mentions"], scored["num_hallucinated"]) == (3, 1)
    assert faults("chair", [coco()[0]], predictions) == [
        "instances.json holds COCO's instances; give the captions file with another --data"
    ]


def test_a_caption_comes_after_its_reasoning_and_one_that_never_came_is_left_out() -> None:
    rows = [{"image_id": 1, "caption": "<think>A man and a cat?</think>A dog."}, {"image_id": 2, "caption": "<think>A cat"}]
    found, published = (score("chair", list(coco()), document(rows), published=way) for way in (False, True))
    assert (found["num_mentions"], found["num_captions"], found["num_unparsable"], found["chair_s"]) == (1, 1, 1, 0)
    assert (published["num_mentions"], published["num_captions"], published["num_unparsable"]) == (4, 2, 0)


def test_an_object_that_no_word_names_is_a_fault() -> None:
    data = lines({"image_id": 1, "captions": [], "instance_categories": ["dragon"]}, name="ground_truth.jsonl")
    assert faults("chair", [data], document({})) == ["image 1: 'dragon' is not a category of the synonym list; expected one of its words"]


def test_an_empty_synonym_list_is_refused() -> None:
    with pytest.raises(ValueError, match="the synonym list is empty"):
        parse_synonyms("\n , \n")
