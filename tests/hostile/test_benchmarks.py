"""Hostile files for `vigc score`: predictions, data and judges' reviews are read or refused by name, never scored by accident."""

# ruff: noqa: PT017 (an input may be refused or not; where it is, the reason is looked at)

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st

from policies.answers.normalise import normalise_answer, normalise_answer_m4c
from policies.benchmarks import BENCHMARKS, BenchmarkDataError, Document, parse_document
from policies.benchmarks.captions.chair_words import PublishedFinder, WordFinder
from policies.benchmarks.captions.coco_objects import synonym_lists
from policies.benchmarks.judged.llava_bench import parse_scores, parse_scores_published
from policies.benchmarks.pope import parse_yes_no, parse_yes_no_published
from tests.hostile.fuzz import NASTY_TEXTS, fuzzed, json_values, texts

REGISTERED = (
    "amber",
    "aokvqa",
    "captions",
    "chair",
    "exact",
    "gqa",
    "hallusion-bench",
    "llava-bench",
    "mm-vet",
    "mmbench",
    "mme",
    "okvqa",
    "pope",
    "scienceqa",
    "seed-bench",
    "textvqa",
    "vizwiz",
    "vqa",
)
CHOICE = {"question": "?", "choices": ["red", "blue"], "correct_choice_idx": 0, "direct_answers": ["red"], "difficult_direct_answer": False}
GQA = {"question": "?", "answer": "red", "imageId": "a", "isBalanced": True, "types": {"structural": "query"}}
AMBER = {"query": "?", "image": "a", "type": "relation", "truth": "no"}
FIGURE = {"category": "VS", "subcategory": "map", "set_id": "0", "figure_id": "0", "question": "?", "gt_answer": "1", "visual_input": "0"}
SEED = {"question": "?", "answer": "B", "data_id": "a", "question_type_id": 1, **{f"choice_{one}": one * 3 for one in "abcd"}}
GOOD: dict[str, tuple[str, Any]] = {
    "amber": ("d.json", [{"id": i, **AMBER} for i in (1, 2)]),
    "hallusion-bench": ("d.json", [{"question_id": i, **FIGURE} for i in (1, 2)]),
    "mm-vet": ("d.json", {str(i): {"question": "?", "answer": "red", "capability": ["rec"], "imagename": "a"} for i in (1, 2)}),
    "vqa": ("d.json", {"annotations": [{"question_id": i, "answers": [{"answer": "red"}] * 10} for i in (1, 2)]}),
    "okvqa": ("d.json", [{"question_id": i, "sent": "?", "label": {"red": 1, "blue": 0.5}} for i in (1, 2)]),
    "aokvqa": ("d.json", [{"question_id": i, **CHOICE} for i in (1, 2)]),
    "pope": ("d.json", [{"question_id": i, "text": "?", "label": "no", "image": "a"} for i in (1, 2)]),
    "chair": ("d.json", [{"image_id": i, "captions": ["a dog"], "instance_categories": ["dog"]} for i in (1, 2)]),
    "captions": ("d.json", [{"image_id": i, "captions": ["a dog"]} for i in (1, 2)]),
    "scienceqa": ("d.json", {str(i): {"question": "?", "choices": ["red", "blue"], "answer": 1} for i in (1, 2)}),
    "llava-bench": ("d.json", [{"question_id": i, "text": "?", "category": "conv"} for i in (1, 2)]),
    "exact": ("d.json", [{"question_id": i, "image": "a", "text": "?", "answer": "There is a dog.", "category": "detail"} for i in (1, 2)]),
    "gqa": ("d.json", {str(i): GQA for i in (1, 2)}),
    "seed-bench": ("d.json", [SEED | {"question_id": i} for i in (1, 2)]),
    "textvqa": ("d.json", {"data": [{"question_id": i, "image_id": "a", "question": "?", "answers": ["red"] * 10} for i in (1, 2)]}),
    "vizwiz": ("d.json", [{"image": str(i), "question": "?", "answers": [{"answer": "red"}] * 10} for i in (1, 2)]),
    "mme": ("d.json", [{"question_id": i, "question": "?", "answer": "No", "category": "count"} for i in (1, 2)]),
    "mmbench": ("d.tsv", "index\tquestion\tA\tB\tanswer\n1\t?\tred\tblue\tB\n2\t?\tred\tblue\tA"),
}
FIELDS = ("question_id", "image_id", "answer", "caption", "review", "score", "tuple", "multiple_choice", "direct_answer", "category", "set")
LISTS = ("annotations", "questions", "images", "categories", "data", "question_type")

ids = st.sampled_from((1, 2, "1", "2", "3", True, None, 1.0, -1, "", 1000001))
records = st.dictionaries(st.sampled_from(FIELDS), texts | ids | json_values | st.lists(st.integers(-2, 12), max_size=3), max_size=6)
answers = (
    texts
    | st.sampled_from(("A", "red", "yes", "8 9"))
    | st.fixed_dictionaries({"multiple_choice": texts, "direct_answer": texts})
    | json_values
)
predictions = st.lists(records | json_values, max_size=4) | st.dictionaries(
    st.sampled_from(("1", "2", "1000001", "x")), answers, max_size=4
)


def document(name: str, value: Any) -> Document:
    return parse_document(name, (value if isinstance(value, str) else json.dumps(value)).encode())


def in_bounds(name: str, scores: dict[str, Any]) -> None:
    json.dumps(scores)
    for key in ("accuracy", "multiple_choice", "direct_answer", "chair_i", "chair_s", "f1", "image_accuracy", "bleu_4", "rouge_l"):
        assert 0 <= scores.get(key, 0) <= 100, (name, key)


@pytest.mark.parametrize("name", REGISTERED)
@fuzzed(given=predictions, missing=st.booleans(), published=st.booleans(), lines=st.booleans())
def test_predictions_of_any_content_are_scored_or_refused(name: str, given: Any, missing: bool, published: bool, lines: bool) -> None:
    benchmark = BENCHMARKS.build(name, {"published": published})
    questions = benchmark.read([document(*GOOD[name])])
    as_lines = lines and isinstance(given, list)
    try:
        file = document("p.jsonl", "\n".join(map(json.dumps, given))) if as_lines else document("p.json", given)
        found = benchmark.read_predictions(file, questions, missing)
    except BenchmarkDataError as error:
        assert error.findings
        assert all(finding.startswith(("p.json", "p.jsonl")) for finding in error.findings)
        return
    assert {one.question_id for one in found} <= {question.question_id for question in questions}
    in_bounds(name, benchmark.score(questions, found))


@pytest.mark.parametrize("name", REGISTERED)
@fuzzed(
    value=json_values | st.lists(records, max_size=3) | st.fixed_dictionaries({"annotations": json_values | st.lists(records, max_size=3)})
    | st.dictionaries(st.sampled_from(LISTS), json_values | st.lists(records, max_size=2))
)  # fmt: skip
def test_data_of_any_content_are_read_or_refused(name: str, value: Any) -> None:
    benchmark = BENCHMARKS.build(name)
    try:
        questions = benchmark.read([document("d.json", value)])
    except BenchmarkDataError as error:
        assert error.findings
        return
    in_bounds(name, benchmark.score(questions, []))


@pytest.mark.parametrize("name", sorted({*REGISTERED} - {"mmbench"}))  # a table has no JSON fields
@fuzzed(
    key=st.sampled_from(("question_id", "answers", "label", "choices", "answer", "captions", "instance_categories", "text", "id")),
    value=json_values,
)
def test_a_good_file_with_one_field_changed_is_read_or_refused(name: str, key: str, value: Any) -> None:
    content = json.loads(json.dumps(GOOD[name][1]))
    rows = content if isinstance(content, list) else content.get("annotations", content.get("data", list(content.values())))
    rows[0][key] = value
    benchmark = BENCHMARKS.build(name)
    try:
        questions = benchmark.read([document("d.json", content)])
    except BenchmarkDataError as error:
        assert all("d.json" in finding or finding.startswith("image ") for finding in error.findings)
        return
    assert len(questions) == 2


@fuzzed(
    data=st.binary(max_size=80) | st.sampled_from((b"[" * 100_000, b'{"a":' * 50_000, b"\xef\xbb\xbf{}", b"", b"\0")),
    ending=st.sampled_from(("json", "jsonl", "tsv")),
)
def test_bytes_of_any_kind_are_a_document_or_refused(data: bytes, ending: str) -> None:
    try:
        found = parse_document(f"x.{ending}", data)
    except BenchmarkDataError as error:
        assert all(finding.startswith(f"x.{ending}") for finding in error.findings)
        return
    assert found.entries is not None or ending == "json"


SCORE_PIECES = st.sampled_from(
    ("8", "9", "10", "11", "-1", "8.5", "inf", "nan", "1e9", "/10", " ", ",", "\n", "\t", "Assistant 1", ":", "Assistant 2", "score",
     "scores are", "is", "(", ")", "**", "\u0669", "\x00", "." * 50, " " * 500, "9" * 400)
)  # fmt: skip


@fuzzed(review=st.lists(SCORE_PIECES | texts, max_size=14).map("".join))
def test_a_review_of_any_text_gives_two_scores_in_range_or_none(review: str) -> None:
    found = parse_scores(review)
    assert found is None or all(0 <= score <= 10 for score in found)
    assert len(parse_scores_published(review)) == 2


@fuzzed(text=st.lists(texts | st.sampled_from(("yes", "no", "not", "n't", "There is", ",", ".", " ")), max_size=8).map("".join))
def test_an_answer_of_any_text_is_yes_no_or_neither(text: str) -> None:
    assert parse_yes_no(text) in ("yes", "no", None)
    assert parse_yes_no_published(text) in ("yes", "no")


FINDERS = (WordFinder(synonym_lists()), PublishedFinder(synonym_lists()))
CATEGORIES = {words[0] for words in synonym_lists()}


@fuzzed(caption=st.lists(texts | st.sampled_from(("bus", "wine", "glass", "-", "'s", " ", "baby", "dogs")), max_size=12).map("".join))
def test_a_caption_of_any_text_names_known_categories(caption: str) -> None:
    for finder in FINDERS:
        assert {category for _, category in finder.find(caption)} <= CATEGORIES


@fuzzed(text=st.lists(texts | st.sampled_from((",", "1", ".", "/", " ", "the", "dont", "two")), max_size=12).map("".join))
def test_a_text_of_any_kind_is_normalised_to_single_spaces(text: str) -> None:
    for normalise in (normalise_answer, normalise_answer_m4c):
        assert normalise(text) == " ".join(normalise(text).split())


@pytest.mark.parametrize("text", NASTY_TEXTS, ids=range(len(NASTY_TEXTS)))
def test_nasty_texts_are_answers_like_any_other(text: str) -> None:
    benchmark = BENCHMARKS.build("pope")
    questions = benchmark.read([document(*GOOD["pope"])])
    found = benchmark.score(questions, benchmark.read_predictions(document("p.json", {"1": text, "2": "no"}), questions))
    assert found["accuracy"] >= 50
