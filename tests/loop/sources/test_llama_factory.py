"""LLaMA-Factory's data: columns and tags as dataset_info.json names them, both formattings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loop.config.sets import LlamaFactorySet
from loop.errors import UserError
from loop.setup.assembly import build_labelled
from loop.sources.llama_factory import LlamaFactoryData
from policies.generation.instructions import QuestionType
from tests.loop.sources.image_sets import png

OWN_NAMES = {
    "file_name": "data.json", "formatting": "sharegpt", "columns": {"messages": "dialog", "images": "photos", "system": "prompt"},
    "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "person", "assistant_tag": "bot", "system_tag": "rules"},
}  # fmt: skip
OPENAI = {
    "file_name": "data.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"},
}  # fmt: skip
ALPACA = {"file_name": "data.jsonl", "columns": {"prompt": "instruction", "query": "input", "history": "past", "images": "images"}}
PLAIN = {"file_name": "data.json", "formatting": "sharegpt", "columns": {"images": "images"}}


def data(folder: Path, description: dict[str, Any], *records: Any, **options: Any) -> LlamaFactoryData:
    for number, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(number))
    (folder / "dataset_info.json").write_text(json.dumps({"mine": description}))
    as_lines = str(description.get("file_name", "")).endswith("l")
    (folder / "data.json").write_text(json.dumps(list(records)))
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)) if as_lines else "")
    return LlamaFactoryData(folder, **options)


def turn(role: str, text: str, names: tuple[str, str] = ("who", "text")) -> dict[str, str]:
    return dict(zip(names, (role, text), strict=True))


def test_columns_and_tags_are_read_by_the_names_of_the_description(tmp_path: Path) -> None:
    dialog = [
        turn("rules", "Be kind."),
        turn("person", "<image>What is it?"),
        turn("bot", "A cat."),
        turn("person", "Where?"),
        turn("bot", "Here."),
    ]
    rows = [
        {"dialog": dialog, "photos": ["b.png"], "id": "x", "type": "complex"},
        {"dialog": dialog[1:3], "photos": ["a.png"], "prompt": "Be kind."},
        {"dialog": [turn("person", "Who are you?"), turn("bot", "A bot.")], "photos": []},
    ]  # fmt: skip
    records = data(tmp_path, OWN_NAMES, *rows).records()
    assert [(one.image_id, one.turns) for one in records] == [
        ("b.png", (("What is it?", "A cat."), ("Where?", "Here."))), ("a.png", (("What is it?", "A cat."),)),
        ("", (("Who are you?", "A bot."),)),
    ]  # fmt: skip
    assert (records[0].name, records[0].question_type) == ("x#0", QuestionType.COMPLEX)


def test_alpaca_joins_instruction_and_input_and_puts_the_history_first(tmp_path: Path) -> None:
    past = [["<image>What is it?", "A cat."]]
    row = {"instruction": "Where is it?", "input": "In the picture.", "output": "Here.", "past": past, "images": ["a.png"]}
    [record] = data(tmp_path, ALPACA, row).records()
    assert record.turns == (("What is it?", "A cat."), ("Where is it?\nIn the picture.", "Here."))
    [record] = data(tmp_path, ALPACA, {"instruction": "<image>What is it?", "output": "A cat.", "images": ["a.png"]}).records()
    assert record.turns == (("What is it?", "A cat."),)


def test_a_config_names_the_dataset_and_the_folder_of_its_images(tmp_path: Path) -> None:
    row = {
        "messages": [turn("user", "<image>Who?", ("role", "content")), turn("assistant", "She.", ("role", "content"))],
        "images": ["a.png"],
    }
    data(tmp_path, OPENAI, row)
    info = {"mine": OPENAI, "other": {"hf_hub_url": "someone/data"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "media").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "media" / "a.png")
    spec = LlamaFactorySet(kind="llama_factory", path=str(tmp_path / "dataset_info.json"), dataset="mine", images=str(tmp_path / "media"))
    source = build_labelled(spec)
    assert [one.question for one in source.questions(5, 0)] == ["Who?"]
    for dataset, expected in (
        (None, "describes 2 datasets; name one with `dataset`: mine, other"),
        ("mime", "did you mean"),
        ("other", "download it"),
    ):
        with pytest.raises(UserError, match=expected):
            LlamaFactoryData(tmp_path, dataset)


@pytest.mark.parametrize(("change", "expected"), [
    ({"ranking": True}, "holds preferences"), ({"formatting": "openai"}, "formatting is 'openai'; expected alpaca or sharegpt"),
    ({"file_name": None}, "file_name is None; expected the name of a JSON file"), ({"file_name": "d.parquet"}, "take the kind messages"),
    ({"columns": {}}, "has image None; expected a file name"), ({"columns": {"images": 5}}, "columns is .* expected an object of texts"),
    ({"tags": {"role_tag": "who"}}, "message 0 must be of the role user; it is of None"),
    ({"columns": {"images": "images", "videos": "clips"}}, "is about the videos"),
])  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    names = ("from", "value")
    row = {"conversations": [turn("human", "<image>Who?", names), turn("gpt", "She.", names)], "images": ["a.png"], "clips": ["c.mp4"]}
    assert len(data(tmp_path, PLAIN, row).records()) == 1
    with pytest.raises(UserError, match=expected):
        data(tmp_path, {**PLAIN, **change}, row).records()


def test_a_file_that_describes_nothing_is_refused(tmp_path: Path) -> None:
    for text, expected in (("[]", "describes no datasets"), ("{", "cannot be read"), ('{"a": 1}', "describes no datasets")):
        (tmp_path / "dataset_info.json").write_text(text)
        with pytest.raises(UserError, match=expected):
            LlamaFactoryData(tmp_path)
    with pytest.raises(UserError, match=r"dataset_info.json cannot be read.*expected dataset_info.json"):
        LlamaFactoryData(tmp_path / "nowhere")
