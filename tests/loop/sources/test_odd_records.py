"""Odd records of real files: what is understood, what is left out, and that all of the rest is told at once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.images import BadImageError
from loop.errors import UserError
from loop.sources.llava_json import LlavaJsonData
from loop.sources.messages import MessagesData
from loop.sources.reading.unread import say_once
from loop.sources.vigc_json import VigcJsonData
from tests.loop.sources.image_sets import png

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
PLAIN = {"id": "1", "image": "a.png", "conversations": TURNS}
READ = ("a.png", (("What?", "A cat."),))


@pytest.fixture(autouse=True)
def _say_everything_again() -> None:
    say_once.cache_clear()


def llava(folder: Path, *entries: Any, name: str = "data.json", **options: Any) -> LlavaJsonData:
    for number, image in enumerate(("a.png", "b c.png")):
        (folder / image).write_bytes(png(number))
    text = "\n".join(map(json.dumps, entries)) if name.endswith("l") else json.dumps(list(entries))
    (folder / name).write_text(text)
    return LlavaJsonData(folder / name, folder, **options)


def human(text: Any, **more: Any) -> dict[str, Any]:
    return {**PLAIN, "conversations": [{"from": "human", "value": text}, TURNS[1]], **more}


def chat(content: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
    return {"messages": messages, "images": ["a.png"], **more}


@pytest.mark.parametrize(
    "entry",
    [
        {**PLAIN, "image": ["a.png"]},
        {**PLAIN, "image": [{"path": "a.png"}]},
        {**PLAIN, "id": 5, "source": "vg", "width": float("nan")},
        {**PLAIN, "conversations": [{"from": "system", "value": "Be brief."}, *TURNS]},
        {**PLAIN, "conversations": [{"from": "user", "value": "<image>\nWhat?"}, {"from": "Assistant", "value": "A cat."}]},
        {**PLAIN, "conversations": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]},
        human("What?\n<image>"),
        human([{"type": "image"}, {"type": "text", "text": "What?"}]),
        chat("<image>What?"),
        chat("What?<image>"),
        chat("What?"),
        {**chat("<image>What?"), "system": "Be brief."},
        {key: value for key, value in PLAIN.items() if key != "id"},
    ],
)
def test_what_other_tools_write_is_understood(tmp_path: Path, entry: dict[str, Any]) -> None:
    for name in ("data.json", "data.jsonl"):
        assert [(one.image_id, one.turns) for one in llava(tmp_path, entry, PLAIN, name=name).records()] == [READ, READ]


def test_an_image_token_in_the_middle_is_the_place_of_the_image(tmp_path: Path) -> None:
    assert llava(tmp_path, human("In <image> what?")).records()[0].turns == (("In  what?", "A cat."),)


def test_a_mix_has_records_about_one_image_several_and_none(tmp_path: Path) -> None:
    text = human("Two and <three>?", id="t")
    del text["image"]
    turns = [{"from": "human", "value": "<image>\n<image>\nAlike?"}, TURNS[1], {"from": "human", "value": "And <image>?"}, TURNS[1]]
    several = {"id": "s", "image": ["a.png", "b c.png", "a.png"], "conversations": turns}
    tokenless = chat("Alike?", images=["a.png", "b c.png"])
    data = llava(tmp_path, PLAIN, text, several, tokenless)
    assert [(record.images, record.turns[0][0]) for record in data.records()] == [
        (("a.png",), "What?"), ((), "Two and <three>?"), (("a.png", "b c.png", "a.png"), "<image>\n<image>\nAlike?"),
        (("a.png", "b c.png"), "<image><image>Alike?"),
    ]  # fmt: skip
    assert data.image_ids() == ["a.png", "b c.png"]
    assert {sample.images: len(sample.turns) for sample in data.conversations(None, 0)} == {
        ("a.png",): 1, (): 1, ("a.png", "b c.png", "a.png"): 2, ("a.png", "b c.png"): 1,
    }  # fmt: skip
    vig = [sample.images for sample in data.training_samples(40, 0) if "What?" in sample.turns[0][1]]
    assert set(vig) == {("a.png",)}
    assert [question.image_id for question in data.questions(9, 0)] == ["a.png"]
    assert [sample.images for sample in data.captions(None, 0)] == [("a.png",)]
    with pytest.raises(UserError, match=r"all 2 records of .* are about several images or none, but a question is asked about one image"):
        llava(tmp_path, text, several).questions(1, 0)


def test_unusable_records_about_no_image_are_left_out_of_a_llava_mix_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = {"id": "t", "conversations": [{"from": "gpt", "value": "Seven."}]}
    data = llava(tmp_path, PLAIN, text, {**text, "image": ""}, {**text, "image": None})
    assert len(data.records()) == 1
    (said,) = [record.message for record in caplog.records]
    assert "3 of 4 records are left out, about no image, and not a usable conversation: record 1 of" in said
    with pytest.raises(UserError, match=r"none of the 1 records of .* can be used"):
        llava(tmp_path, text)


BAD = [
    {**PLAIN, "id": "two", "image": ["a.png", "b.png"]},
    {**PLAIN, "id": "gap", "image": ["a.png", None]},
    {**PLAIN, "id": "video", "video": "x.mp4"},
    human("<video>\nWhat?", id="token"),
    {**PLAIN, "id": "gpt", "conversations": TURNS[::-1]},
    {**PLAIN, "id": "odd", "conversations": TURNS[:1]},
    {**PLAIN, "id": "tool", "conversations": [TURNS[0], {"from": "function_call", "value": "x"}]},
    {**PLAIN, "id": "none", "conversations": []},
    {**PLAIN, "id": "blank", "conversations": [TURNS[0], {"from": "gpt", "value": " \n"}]},
    {**PLAIN, "id": "null", "conversations": [TURNS[0], {"from": "gpt", "value": None}]},
    {**PLAIN, "id": "lacks", "image": None},
    {**PLAIN, "id": "url", "image": "https://example.com/a.png"},
    human("<image><image>What?", id="twice"),
    {**PLAIN, "id": "poem", "type": "poem"},
    "text",
]


def test_all_bad_records_are_told_at_once_by_reason_and_count(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        llava(tmp_path, PLAIN, *BAD, PLAIN)
    first, *reasons = str(caught.value).split("\n")
    assert first == (
        f"15 of 17 records of {tmp_path}/data.json cannot be used; correct them, or set on_bad_record leave_out to leave them out"
    )
    assert all(line.isprintable() for line in reasons)
    assert {line.partition(", such as ")[0] for line in reasons} == {
        "2 x about a video or audio", "4 x turns are not user and assistant in turn", "1 x an empty text",
        "1 x a text is expected", "3 x no usable image name", "2 x the place of the image is unclear", "1 x an unknown question type",
        "1 x not an object",
    }  # fmt: skip
    assert any("record 5 of" in line and "(id 'gpt'), turn 0 must be" in line for line in reasons)


def test_bad_records_are_left_out_where_the_config_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = llava(tmp_path, PLAIN, *BAD, PLAIN, on_bad_record="leave_out")
    assert [record.name for record in data.records()] == ["1#0", "1#16"]
    assert sum("records are left out" in record.message for record in caplog.records) == 8


def test_system_turns_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llava(tmp_path, {**PLAIN, "conversations": [{"from": "system", "value": "Be brief."}, *TURNS]}, PLAIN, {**PLAIN, "system": "Be brief."})
    assert "the system turns of 2 records are left out" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_a_key_that_stands_twice_with_different_values_is_told(tmp_path: Path) -> None:
    llava(tmp_path, PLAIN)
    for twice in ('"image": "b.png"', '"image": "a.png"'):
        (tmp_path / "data.json").write_text(f"[{json.dumps(PLAIN)}, {json.dumps(PLAIN)[:-1]}, {twice}}}]")
        if "b.png" in twice:
            with pytest.raises(UserError, match=r"record 1 of .* has the key 'image' twice in one object, with different values"):
                LlavaJsonData(tmp_path / "data.json", tmp_path)
        else:
            assert len(LlavaJsonData(tmp_path / "data.json", tmp_path).records()) == 2


def test_json_lines_may_have_blank_lines_and_a_broken_tail_is_told(tmp_path: Path) -> None:
    llava(tmp_path, PLAIN)
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join([json.dumps(PLAIN).encode()] * 3) + b"\r\n")
    assert len(LlavaJsonData(tmp_path / "data.jsonl", tmp_path).records()) == 3
    (tmp_path / "data.jsonl").write_text(json.dumps(PLAIN) + "\n" + json.dumps(PLAIN)[:40])
    with pytest.raises(UserError, match=r"line 2 of .*data\.jsonl is not JSON"):
        LlavaJsonData(tmp_path / "data.jsonl", tmp_path)
    assert len(LlavaJsonData(tmp_path / "data.jsonl", tmp_path, on_bad_record="leave_out").records()) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    llava(tmp_path, PLAIN)
    (tmp_path / "data.json").write_text(json.dumps([PLAIN]), encoding=encoding)
    assert len(LlavaJsonData(tmp_path / "data.json", tmp_path).records()) == 1


def test_compressed_and_other_files_are_refused_by_name(tmp_path: Path) -> None:
    llava(tmp_path, PLAIN)
    for data, text in (
        (b"\x1f\x8b\x08\x00", "compressed with gzip; unpack"),
        ("[é".encode("latin-1"), "not valid UTF-8 text: .*; save it as UTF-8"),
    ):
        (tmp_path / "data.json").write_bytes(data)
        with pytest.raises(UserError, match=rf"data\.json cannot be read: it is {text}"):
            LlavaJsonData(tmp_path / "data.json", tmp_path)


def test_names_of_images_may_be_spelled_as_in_a_url_or_on_windows(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.png").write_bytes(png(7))
    data = llava(tmp_path, {**PLAIN, "image": "b%20c.png"}, {**PLAIN, "image": "sub\\x.png"})
    assert [data.open(image_id).getpixel((0, 0)) for image_id in data.image_ids()] == [(1, 0, 7), (7, 0, 7)]


# ---- messages and VIGC


def rows(folder: Path, *entries: dict[str, Any], **options: Any) -> MessagesData:
    images = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("messages", message), ("images", images)])
    pq.write_table(pa.Table.from_pylist(list(entries), schema=schema), folder / "data.parquet", row_group_size=2)
    return MessagesData(folder / "data.parquet", **options)


def row(content: str, num_images: int = 1) -> dict[str, Any]:
    return {**chat(content), "images": [{"bytes": png(1), "path": None}] * num_images}


@pytest.mark.parametrize("content", ["<image>What?", "What?\n<image>", "<image>\nWhat?", "What?"])
def test_an_image_token_in_a_message_is_the_place_of_its_image(tmp_path: Path, content: str) -> None:
    assert rows(tmp_path, row(content)).records()[0].turns == (("What?", "A cat."),)


def test_an_image_token_beside_an_image_part_is_left_out(tmp_path: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What <image>is it?"}]
    assert llava(tmp_path, human(content)).records()[0].turns == (("What is it?", "A cat."),)


def test_rows_have_one_image_several_or_none(tmp_path: Path) -> None:
    two = {**row("<image>Like <image>?"), "images": [{"bytes": png(number), "path": None} for number in (1, 2)]}
    data = rows(tmp_path, row("What?"), row("What?", 0), two)
    assert [record.images for record in data.records()] == [("data.parquet/0",), (), ("data.parquet/2#0", "data.parquet/2#1")]
    assert [data.open(image_id).getpixel((0, 0))[0] for image_id in data.image_ids()] == [1, 1, 2]
    for wrong in ("data.parquet/2#2", "data.parquet/2#x", "data.parquet/2#-1", "data.parquet/1#0"):
        with pytest.raises(BadImageError, match=r"is not a row|the row holds"):
            data.open(wrong)
    with pytest.raises(UserError, match=r"<image> must appear exactly 2 times, in human turns"):
        rows(tmp_path, row("<image>What?", 2))


def test_messages_in_json_are_told_their_kind(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(UserError, match=r"is JSON .*; take the kind llava_json"):
        MessagesData(tmp_path / "data.json")


def test_bad_records_of_vigc_are_left_out_where_the_config_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    good = {"image": "a.png", "question": "What?", "answer": ["a cat"]}
    (tmp_path / "data.json").write_text(json.dumps([good, {**good, "question": ""}, {**good, "image": ["a.png"]}]))
    with pytest.raises(UserError, match=r"record 1 of .* question is ''"):
        VigcJsonData(tmp_path / "data.json", tmp_path)
    assert len(VigcJsonData(tmp_path / "data.json", tmp_path, on_bad_record="leave_out").records()) == 2
