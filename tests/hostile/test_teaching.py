"""What a teacher writes and what a stranger's annotations hold: a value or a named error, soon."""

# ruff: noqa: PT017 (an input may be refused or not; where it is, the reason is looked at)

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from actors.chat.apis import APIS, ApiName, MalformedReplyError, refused_field
from loop.errors import UserError
from loop.sources.annotations import read_annotations
from policies.generation.instructions import QuestionType
from policies.teaching.output import MARKS, MAX_CHARACTERS, Fault, read_output
from policies.teaching.prompts import SeenObject, TextView, teaching_messages, teaching_task
from tests.hostile.fuzz import fuzzed, json_values, texts

PIECES = (
    "Question:", "Answer:", "Question: ", "Answer: ", "**Question 1:** ", "question :", "\n===\n", "===", "=====\n", "\n", "\n\n", " ", "?",
    ".", "What is it?", "It is a cat.", "Where is the red cat on the mat?", "The cat is on the mat, near the door.", "caption",
    "bounding box", "[0.1, 0.2, 0.3, 0.4]", "I cannot", "As an AI", "<image>", "</s>", "<|im_end|>", "\0", "\u202e", "\u2028",
    "der die das und ist",
    "Sure!",
)  # fmt: skip
outputs = st.lists(st.sampled_from(PIECES) | texts, max_size=14).map("".join)
types = st.sampled_from(list(QuestionType))


@fuzzed(text=outputs, kind=types, cut_off=st.booleans())
def test_an_output_is_pairs_that_can_be_trained_on_or_has_a_reason(text: str, kind: QuestionType, cut_off: bool) -> None:
    found = read_output(kind, text, "Describe it." if kind is QuestionType.DETAIL else "", cut_off=cut_off)
    assert found.pairs or found.rejected
    assert len(found.rejected) <= 1
    assert all(isinstance(one.fault, Fault) for one in found.rejected)
    for pair in found.pairs:
        for part in pair:
            assert part
            assert part == " ".join(part.split())
            assert part.isprintable()
            assert not MARKS.search(part)
    if kind is not QuestionType.CONVERSATION:
        assert len(found.pairs) + len(found.rejected) == 1
    if kind is QuestionType.COMPLEX and found.pairs:
        ((question, answer),) = found.pairs
        assert read_output(kind, f"Question: {question}\n===\nAnswer: {answer}").pairs == found.pairs


@fuzzed(blocks=st.lists(st.tuples(outputs, outputs), min_size=1, max_size=4))
def test_blocks_of_any_content_never_yield_more_pairs_than_questions(blocks: list[tuple[str, str]]) -> None:
    text = "\n===\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in blocks)
    assert len(read_output(QuestionType.CONVERSATION, text).pairs) <= text.lower().count("question") + text.count("===")


@pytest.mark.parametrize("piece", [
    "a. ", "the ", ". ", "?", "Question:", "Question: x\nAnswer: y\n===\n", "question     ", "\n", "=", "===\n", "\t", "[0.1, ", "( ",
    "0.1",     "a a ", "* ", "<|", "I am ", "no image ", "。", "é", "_",
])  # fmt: skip
@pytest.mark.parametrize("kind", list(QuestionType))
def test_an_output_of_the_greatest_length_is_read_in_bounded_time(piece: str, kind: QuestionType) -> None:
    text = piece * (MAX_CHARACTERS // len(piece))
    started = time.process_time()
    read_output(kind, text, "Describe it.")
    assert time.process_time() - started < 5.0


@fuzzed(captions=st.lists(texts, max_size=4).map(tuple), category=texts, kind=types)
def test_a_prompt_keeps_its_form_whatever_captions_say(captions: tuple[str, ...], category: str, kind: QuestionType) -> None:
    view = TextView("1", "1.jpg", captions, (SeenObject(category, (0.0, 0.0, 0.5, 0.5)),))
    task = teaching_task(view, kind, 3)
    messages = teaching_messages(task)
    assert messages[:-1] == teaching_messages(teaching_task(TextView("2", "2.jpg", ("A dog.",)), kind, 4))[:-1]
    shown = messages[-1].text
    lines = [line for line in shown.split("\n") if line]
    assert all(line in ("Captions:", "Objects:") or line.startswith("- ") for line in lines)
    assert len(shown.splitlines()) == len(shown.split("\n"))
    assert not MARKS.search(shown)


CONTENTS = json_values | st.fixed_dictionaries({}, optional={
    "choices": st.lists(st.fixed_dictionaries({}, optional={
        "message": json_values | st.dictionaries(st.sampled_from(("content", "refusal", "reasoning", "reasoning_content")), json_values),
        "finish_reason": json_values | st.sampled_from(("length", "stop")),
    }), max_size=2) | json_values,
    "content": st.lists(st.dictionaries(st.sampled_from(("type", "text", "thinking")), json_values | st.just("text"))) | json_values,
    "stop_reason": json_values, "usage": st.dictionaries(st.sampled_from(("prompt_tokens", "input_tokens", "output_tokens")), json_values),
    "error": st.fixed_dictionaries({"message": st.just("'seed' is not supported") | json_values, "param": json_values}) | json_values,
})  # fmt: skip


@fuzzed(content=CONTENTS, api=st.sampled_from(sorted(APIS)))
def test_what_an_endpoint_answers_is_a_reply_or_malformed(content: Any, api: ApiName) -> None:
    assert refused_field(json.dumps(content), {"seed": 1}) in (None, "seed")
    if not isinstance(content, dict):  # refused before
        return
    counts = APIS[api].num_tokens(content)
    assert counts is None or min(counts) >= 0
    try:
        found = APIS[api].completion(content)
    except MalformedReplyError as error:
        assert "the answer holds no" in str(error)
        return
    assert isinstance(found.text, str)
    assert found.finish_reason in ("stop", "length", "refusal", "reasoning")


ENTRIES = st.lists(
    st.dictionaries(
        st.sampled_from(("id", "image_id", "category_id", "bbox", "caption", "file_name", "width", "height", "iscrowd", "name")),
        json_values | st.sampled_from((1, 2, "1", 640, [0, 0, 5, 5], [1e300, 0, 1, 1], [0, 0, float("nan"), 1])),
        max_size=7,
    ) | json_values,
    max_size=4,
)  # fmt: skip
FILES = st.dictionaries(st.sampled_from(("images", "annotations", "categories", "info")), ENTRIES | json_values, max_size=4) | json_values


@fuzzed(captions=FILES, instances=FILES, which=st.sampled_from(("both", "captions", "instances")))
def test_annotations_are_read_or_refused(tmp_path: Path, captions: Any, instances: Any, which: str) -> None:
    paths = tmp_path / "captions.json", tmp_path / "instances.json"
    for path, content in zip(paths, (captions, instances), strict=True):
        path.write_text(json.dumps(content))
    _read_or_refused(paths[0] if which != "instances" else None, paths[1] if which != "captions" else None)


@fuzzed(data=st.binary(max_size=120) | st.lists(json_values | st.fixed_dictionaries({
    "id": st.sampled_from((1, "2")) | json_values, "image": texts | st.just("a.jpg"), "captions": st.lists(texts, max_size=2) | json_values,
    "instances": ENTRIES | json_values,
}), max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()))  # fmt: skip
def test_json_lines_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    _read_or_refused(tmp_path / "x.jsonl", None)


def _read_or_refused(captions: Path | None, instances: Path | None) -> None:
    try:
        found = read_annotations(captions, instances)
    except UserError as error:
        assert str(captions or instances) in str(error) or str(instances) in str(error)
        return
    assert found.views
    for view in found.views:
        assert view.captions or view.objects
        assert all(0.0 <= edge <= 1.0 for each in view.objects for edge in each.box)
        assert view.text(QuestionType.DETAIL)
