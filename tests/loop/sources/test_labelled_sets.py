"""Labelled data of VIGC and of chat messages, whole conversations as samples, and the errors that name a record."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.training.inputs.encoding import IGNORED, ConversationEncoder
from loop.config.run_config import EMBEDDED_MODEL
from loop.config.sets import LlavaJsonSet, MessagesSet, VigcJsonSet
from loop.errors import UserError
from loop.setup.assembly import build_labelled
from loop.sources.labelled import LabelledData
from loop.sources.messages import MessagesData
from loop.sources.vigc_json import VigcJsonData
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, TRAINING_INSTRUCTIONS, KnowledgeType, QuestionType, parse_vig
from policies.generation.knowledge import vic_prompt
from tests.loop.sources.image_sets import number_of, png

ANNOTATION = {"image": "a.png", "question_id": 4, "question": "Who made it?", "answer": ["gaudi", "gaudi", "guell", "gaudi "]}
GENERATED = {
    "image": "b.png", "image_id": 77, "instruction": CANONICAL_INSTRUCTIONS[QuestionType.DETAIL], "question": "What is there?",
    "answer": "A cat. It sleeps.", "whole_text": "...", "original_answer": "A dog.", "answer_given_question": "A cat.", "answer_lst": [],
}  # fmt: skip
OKVQA = {**ANNOTATION, "type": "okvqa"}


def vigc(folder: Path, *entries: Any, **options: Any) -> VigcJsonData:
    for number, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(number))
    (folder / "data.json").write_text(json.dumps(list(entries)))
    return VigcJsonData(folder / "data.json", folder, **options)


def row(*texts: str | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A row of messages by user and assistant in turn; the first has the image."""
    contents = [[{"type": "text", "text": text}] if isinstance(text, str) else text for text in texts]
    contents[0] = [{"type": "image", "text": None}, *contents[0]]
    messages = [{"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)]
    return {"messages": messages, "images": [{"bytes": png(len(texts)), "path": "x.png"}], **more}


def messages(folder: Path, *rows: dict[str, Any], **options: Any) -> MessagesData:
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "data.parquet", row_group_size=2)
    return MessagesData(folder / "data.parquet", **options)


TWO_TURNS = row("What is it?", "A cat.", "Where?", "On a mat.", id="r1", type="conversation")
DETAIL = row("Describe it.", "A black cat.", id="r2", type="detail")


def known(data: LabelledData) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    return [(record.image_id, record.question_type, record.turns) for record in data.records()]


# ---- VIGC


def test_vigc_annotations_and_generated_records_are_read(tmp_path: Path) -> None:
    data = vigc(tmp_path, ANNOTATION, GENERATED, OKVQA)
    assert known(data) == [
        ("a.png", "conversation", (("Who made it?", "gaudi"),)),
        ("b.png", "detail", (("What is there?", "A cat. It sleeps."),)),
        ("a.png", "okvqa", (("Who made it?", "gaudi"),)),
    ]
    assert [record.name for record in data.records()] == ["4#0", "77#1", "4#2"]
    assert data.image_ids() == ["a.png", "b.png"]
    assert number_of(data.open("b.png")) == 1
    assert {(one.question_id, one.answer) for one in data.questions(9, 0)} == {
        ("4#0", "gaudi"),
        ("77#1", "A cat. It sleeps."),
        ("4#2", "gaudi"),
    }


def test_a_okvqa_records_are_read_by_the_names_that_they_have(tmp_path: Path) -> None:
    entry = {"image_path": "a.png", "question": "Why?", "direct_answers": ["rain", "rain", "sun"]}
    assert known(vigc(tmp_path, entry, question_type=KnowledgeType.AOKVQA)) == [("a.png", "aokvqa", (("Why?", "rain"),))]


def test_answers_are_drawn_as_often_as_annotators_gave_them(tmp_path: Path) -> None:
    samples = vigc(tmp_path, OKVQA).training_samples(4000, seed=1)
    for half, found in ((samples[::2], lambda text: getattr(parse_vig(text), "answer", None)), (samples[1::2], lambda text: text)):
        counts = Counter(found(sample.turns[0][1]) for sample in half)
        assert set(counts) == {"gaudi", "guell"}
        assert 0.7 < counts["gaudi"] / 2000 < 0.8
    assert {sample.turns[0][0] for sample in samples[::2]} == {CANONICAL_INSTRUCTIONS[KnowledgeType.OKVQA]}
    assert {sample.turns[0][0] for sample in samples[1::2]} == {vic_prompt("okvqa", "Who made it?")}


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ("x", "is str; expected an object with image and questions and answers"),
        ({**ANNOTATION, "image": None}, "has image None"),
        ({**ANNOTATION, "question": " "}, "question is ' '; expected a text that is not empty"),
        ({**ANNOTATION, "question": None}, "question is None"),
        ({**ANNOTATION, "answer": []}, "has answer []; expected a text or a list of texts"),
        ({**ANNOTATION, "answer": None}, "has answer None"),
        ({**ANNOTATION, "answer": ["x", ""]}, "answer 1 is ''"),
        ({**ANNOTATION, "answer": ["x", 5]}, "answer 1 is 5"),
        ({**ANNOTATION, "type": "poem"}, "has type 'poem'; expected one of"),
        ({**ANNOTATION, "question": "x" * 40_000}, "holds a text of 40000 characters"),
        ({**ANNOTATION, "question": "\ud800"}, "which is not valid Unicode"),
    ],
)
def test_a_wrong_vigc_record_is_named(tmp_path: Path, bad: Any, text: str) -> None:
    with pytest.raises(UserError, match=r"record 1 of .*data\.json") as caught:
        vigc(tmp_path, ANNOTATION, bad)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_wrong_vigc_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read: .*; expected a JSON list of questions and answers"):
        VigcJsonData(tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(UserError, match="holds no list of questions and answers"):
        vigc(tmp_path)
    with pytest.raises(UserError, match=r"the only image of .*data\.json cannot be read \(gone.*is .* the right folder\?"):
        vigc(tmp_path, {**ANNOTATION, "image": "gone.png"})


# ---- messages


def test_messages_are_read_with_their_image(tmp_path: Path) -> None:
    data = messages(tmp_path, TWO_TURNS, DETAIL)
    assert known(data) == [
        ("data.parquet/0", "conversation", (("What is it?", "A cat."), ("Where?", "On a mat."))),
        ("data.parquet/1", "detail", (("Describe it.", "A black cat."),)),
    ]
    assert [record.name for record in data.records()] == ["r1#0", "r2#1"]
    assert [number_of(data.open(image_id)) for image_id in data.image_ids()] == [4, 2]
    copy = pickle.loads(pickle.dumps(data))
    assert copy.training_samples(6, 1) == data.training_samples(6, 1)
    assert len(pickle.dumps(copy)) < 1500


def test_messages_may_be_plain_texts_without_id_and_type(tmp_path: Path) -> None:
    plain = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It."}]
    data = messages(tmp_path, {"messages": plain, "images": [{"bytes": png(3), "path": None}]}, question_type=QuestionType.COMPLEX)
    assert known(data) == [("data.parquet/0", "complex", (("What?", "It."),))]
    assert [record.name for record in data.records()] == ["data.parquet#0"]


def changed(change: Any) -> dict[str, Any]:
    one = row("What?", "It.")
    change(one["messages"])
    return one


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (row("What?"), "messages must be a list of user and assistant in turn, ending with assistant"),
        (changed(lambda turns: turns.reverse()), "message 0 must be of the role user"),
        (changed(lambda turns: turns[0].update(role="system")), "message 1 must be of the role user"),
        (row("What?", ""), "message 1 is empty"),
        (
            row("What?", [{"type": "image", "text": None}, {"type": "text", "text": "x"}]),
            "is about one image, which is in its first turn",
        ),
        (row([{"type": "image", "text": None}, {"type": "text", "text": "x"}], "It."), "is about one image"),
        (row("What?", [{"type": "video", "text": "x"}]), "expected a text, or a list of parts of type text and image"),
        (row("What?", "It.", type="poem"), "has type 'poem'"),
        (row("x" * 40_000, "It."), "holds a text of 40000 characters"),
    ],
)
def test_a_wrong_row_of_messages_is_named(tmp_path: Path, bad: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=r"record 1 of .*data\.parquet") as caught:
        messages(tmp_path, {**row("What?", "It."), "type": None}, bad)
    assert text in str(caught.value)


def test_a_wrong_messages_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        MessagesData(tmp_path / "nowhere")
    pq.write_table(pa.table({"images": [[{"bytes": png(1)}]], "text": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"has no column 'messages'; expected \['messages', 'images'\], found \['images', 'text'\]"):
        MessagesData(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"column 'images' of .* does not exist"):
        messages(tmp_path, {"messages": TWO_TURNS["messages"]})
    pq.write_table(pa.Table.from_pylist([TWO_TURNS]).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="hold no rows"):
        MessagesData(tmp_path / "none.parquet")


# ---- whole conversations


def test_whole_conversations_are_trained_on_as_llava_does_and_vig_stays_a_pair(tmp_path: Path) -> None:
    samples = messages(tmp_path, TWO_TURNS, DETAIL, turns="conversation").training_samples(80, seed=3)
    whole = (("What is it?", "A cat."), ("Where?", "On a mat."))
    assert {sample.turns for sample in samples[1::2]} == {whole, (("Describe it.", "A black cat."),)}
    asked = set()
    for sample in samples[::2]:
        ((instruction, target),) = sample.turns
        assert instruction in TRAINING_INSTRUCTIONS[QuestionType(sample.question_type)]
        pair = parse_vig(target)
        assert pair is not None
        asked.add((pair.question, pair.answer))
    assert asked == {*whole, ("Describe it.", "A black cat.")}
    assert [sum(sample.image_id == "data.parquet/0" for sample in samples[start : start + 2]) for start in range(0, 80, 2)] == [1] * 40


def test_the_loss_of_a_whole_conversation_is_on_every_answer(tmp_path: Path) -> None:
    from actors.processors import load_processor

    processor = load_processor(EMBEDDED_MODEL)
    two = row("What is it?", "the red ring", "Where?", "the left", type="conversation")
    sample = messages(tmp_path, two, turns="conversation").training_samples(2, 0)[1]
    encoded = ConversationEncoder(processor, 512).encode(sample.turns, (48, 48))
    learned = processor.tokenizer.decode(encoded.labels[encoded.labels != IGNORED])
    assert learned.replace("</s>", "").split() == ["the", "red", "ring", "the", "left"]


def test_a_config_names_every_kind_of_labelled_set(tmp_path: Path) -> None:
    vigc(tmp_path, ANNOTATION)
    messages(tmp_path, TWO_TURNS)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    more = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]
    (tmp_path / "llava.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns + more}]))
    folder = str(tmp_path)
    for spec, num_turns in (
        (VigcJsonSet(kind="vigc_json", path=f"{folder}/data.json", images=folder, question_type=KnowledgeType.OKVQA), 1),
        (MessagesSet(kind="messages", path=f"{folder}/data.parquet", turns="conversation"), 2),
        (LlavaJsonSet(kind="llava_json", path=f"{folder}/llava.json", images=folder, turns="conversation"), 2),
        (LlavaJsonSet(kind="llava_json", path=f"{folder}/llava.json", images=folder), 1),
    ):
        assert len(build_labelled(spec).training_samples(2, 0)[1].turns) == num_turns
