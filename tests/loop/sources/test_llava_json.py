"""Labelled data in LLaVA's format: samples and questions drawn from it, and errors that name the record."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loop.errors import UserError
from loop.sources.llava_json import LlavaJsonData
from policies.generation.instructions import TRAINING_INSTRUCTIONS, QuestionType, parse_vig


def entry(*texts: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(texts)]
    return {"id": "000001", "image": "a.png", "conversations": turns, **changes}


TWO_TURNS = entry("<image>\nWhat is it?", "A cat.", "Where?", "On a mat.")
DETAIL = entry("Describe it.\n<image>", "A black cat on a red mat.", type="detail", image="sub/b.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    return tmp_path


def data(folder: Path, *entries: Any) -> LlavaJsonData:
    (folder / "data.json").write_text(json.dumps(list(entries)))
    return LlavaJsonData(folder / "data.json", folder / "images")


def test_images_are_listed_once_and_opened(folder: Path) -> None:
    source = data(folder, TWO_TURNS, DETAIL, TWO_TURNS)
    assert source.image_ids() == ["a.png", "sub/b.png"]
    assert source.open("sub/b.png").mode == "RGB"


def test_training_samples_are_half_vig_half_vic(folder: Path) -> None:
    samples = data(folder, TWO_TURNS, DETAIL).training_samples(60, seed=3)
    assert len(samples) == 60
    known = {("What is it?", "A cat."), ("Where?", "On a mat."), ("Describe it.", "A black cat on a red mat.")}
    for sample in samples[::2]:
        ((instruction, target),) = sample.turns
        assert instruction in TRAINING_INSTRUCTIONS[QuestionType(sample.question_type)]
        pair = parse_vig(target)
        assert pair is not None
        assert (pair.question, pair.answer) in known
    assert {sample.turns[0] for sample in samples[1::2]} == known
    assert {sample.origin for sample in samples} == {"seed"}
    assert {(sample.image_id, sample.question_type) for sample in samples} == {("a.png", "conversation"), ("sub/b.png", "detail")}


def test_every_pair_is_used_before_any_is_used_again(folder: Path) -> None:
    samples = data(folder, TWO_TURNS, DETAIL).training_samples(3, seed=0)
    assert len({(sample.image_id, sample.turns[0][1].rpartition("Answer: ")[2]) for sample in samples}) == 3


def test_the_same_seed_gives_the_same_draw(folder: Path) -> None:
    source = data(folder, TWO_TURNS, DETAIL)
    copy = pickle.loads(pickle.dumps(source))
    assert source.training_samples(10, 1) == copy.training_samples(10, 1) != source.training_samples(10, 2)
    assert source.questions(2, 1) == copy.questions(2, 1)


def test_questions_are_first_turns_with_ids_of_their_own(folder: Path) -> None:
    questions = data(folder, TWO_TURNS, DETAIL).questions(10, seed=0)
    assert {(q.question_id, q.question, q.answer, q.question_type) for q in questions} == {
        ("000001#0", "What is it?", "A cat.", "conversation"),
        ("000001#1", "Describe it.", "A black cat on a red mat.", "detail"),
    }
    assert len(data(folder, TWO_TURNS, DETAIL).questions(1, seed=0)) == 1


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ("text", "is str; expected an object"),
        (entry("<image> Q", "A", image=None), "has image None"),
        (entry("<image> Q", "A", type="poem"), "has type 'poem'; expected one of"),
        (entry("<image> Q", "A", type=["detail"]), "has type"),
        (entry("<image> Q"), "conversations must be a list of human and gpt in turn"),
        (entry("<image> Q", "A", conversations=None), "conversations must be"),
        (entry("<image> Q", "A", conversations=[{"from": "gpt", "value": "<image> x"}] * 2), "turn 0 must be {'from': 'human'"),
        (entry("<image> Q", "A", conversations=[{"from": "human", "value": "<image> x"}, {"from": "gpt"}]), "turn 1 must be"),
        (entry("Q", "A"), "must appear exactly once, in the first human turn"),
        (entry("<image> <image> Q", "A"), "must appear exactly once"),
        (entry("<image> Q", "A <image>"), "must appear exactly once"),
        (entry("<image>", "A"), "a turn is empty"),
        (entry("<image> Q", " "), "a turn is empty"),
    ],
)
def test_a_wrong_record_is_named(folder: Path, bad: Any, text: str) -> None:
    with pytest.raises(UserError, match=r"record 1 of .*data\.json") as caught:
        data(folder, TWO_TURNS, bad)
    assert text in str(caught.value)


def test_the_formats_of_other_trainers_are_read(folder: Path) -> None:
    """LlamaFactory's ShareGPT with `images`; ms-swift's messages, its query, response and history, its pairs, and Alpaca's fields."""
    rows = [
        {"conversations": DETAIL["conversations"], "images": ["sub/b.png"]},
        {"messages": [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}], "images": ["a.png"]},
        {"query": "Where?", "response": "Here.", "history": [["<image>Who?", "She."]], "images": ["a.png"]},
        {"query": "<image>Who?", "response": "She.", "images": ["a.png"]},
        {"conversation": [{"human": "<image>Who?", "assistant": "She."}, {"human": "Where?", "assistant": "Here."}], "images": ["a.png"]},
        {"instruction": "<image>Who?", "input": "Say it.", "output": "She.", "images": ["a.png"]},
    ]
    records = data(folder, *rows).records()
    assert [record.turns for record in records] == [
        (("Describe it.", "A black cat on a red mat."),), (("Who?", "She."),), (("Who?", "She."), ("Where?", "Here.")), (("Who?", "She."),),
        (("Who?", "She."), ("Where?", "Here.")), (("Who?\nSay it.", "She."),),
    ]  # fmt: skip
    assert [record.image_id for record in records] == ["sub/b.png", *["a.png"] * 5]
    with pytest.raises(UserError, match="expected objects with human and assistant"):
        data(folder, {**rows[4], "conversation": ["Who?"]}).records()
    for history in ("Who?", [["Who?"]], [1]):
        with pytest.raises(UserError, match=r"has the history .*; expected a list of pairs \[query, response\]"):
            data(folder, {**rows[2], "history": history}).records()
    with pytest.raises(UserError, match="message 1 must be of the role assistant"):
        data(folder, {**rows[3], "response": 5}).records()


def test_a_wrong_file_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read"):
        LlavaJsonData(folder / "nowhere.json", folder / "images")
    (folder / "data.json").write_text("{}")
    with pytest.raises(UserError, match="holds no list of conversations"):
        LlavaJsonData(folder / "data.json", folder / "images")
    (folder / "data.json").write_bytes(b"\xff[")
    with pytest.raises(UserError, match="cannot be read"):
        LlavaJsonData(folder / "data.json", folder / "images")


def test_a_wrong_image_folder_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LlavaJsonData(folder / "data.json", folder / "nowhere")
    with pytest.raises(UserError, match=r"the only image of .*data\.json cannot be read \(c\.png: .* is .*images the right folder\?"):
        data(folder, entry("<image> Q", "A", image="c.png"))
