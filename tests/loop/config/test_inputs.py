"""What a person may write or name in files and commands, taken as the field's tools take it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loop.cli import app
from loop.config.run_config import read_document
from loop.config.sets import FolderSet
from loop.config.yaml_input import YamlInputError, read_yaml
from loop.errors import UserError
from loop.sources.annotations import read_annotations
from loop.sources.reading.json_stream import JsonStream
from policies.benchmarks import parse_document
from tests.loop.sources.image_sets import built, png, refusal

WITH_NAN = {
    "NaN": ['NaN, Infinity " \\', float("inf"), -float("inf"), "x\\\\", 'y\\"', True, None, 1.5, "-Infinity"],
    "info": {"score": float("nan")},
}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_json_stream_is_the_same_wherever_it_is_cut(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "x.json").write_bytes(mark + json.dumps(WITH_NAN).encode())
    for size in range(1, 80):
        with (tmp_path / "x.json").open("rb") as file:
            stream = JsonStream(file, "x.json")
            assert json.loads(b"".join(iter(lambda: stream.read(size), b""))) == _without_nan(WITH_NAN)  # noqa: B023


def coco(folder: Path, data: bytes) -> dict[str, Any]:
    for number, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(number))
    (folder / "coco.json").write_bytes(data)
    return {"kind": "coco", "path": str(folder / "coco.json"), "images": str(folder)}


IMAGES = [{"id": 1, "file_name": "a.png", "score": float("nan")}, {"id": 2, "file_name": "b.png"}]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_coco_files_with_a_byte_order_mark_and_numbers_that_are_none_are_read(tmp_path: Path, mark: bytes) -> None:
    text = json.dumps({"info": {"area": -float("inf")}, "images": IMAGES}, indent=1).replace("\n", "\r\n")
    assert built(**coco(tmp_path, mark + text.encode())).image_ids() == ["a.png", "b.png"]


def test_a_coco_file_that_is_no_plain_json_is_refused_by_name(tmp_path: Path) -> None:
    text = json.dumps({"images": IMAGES})
    assert "coco.json cannot be read: it is UTF-16 or UTF-32 text; save it as UTF-8" in refusal(**coco(tmp_path, text.encode("utf-16")))
    assert "it is compressed with gzip; unpack it first" in refusal(**coco(tmp_path, b"\x1f\x8b\x08\x00"))
    nan = json.dumps({"images": [{"id": 1, "file_name": float("nan")}]})
    assert "image 0 of" in (found := refusal(**coco(tmp_path, nan.encode())))
    assert "has file_name None; expected a printable path" in found
    twice = '{"images": [{"id": 1, "file_name": "a.png", "file_name": "b.png"}]}'
    assert "has two file_names, a.png and b.png; expected one" in refusal(**coco(tmp_path, twice.encode()))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_may_be_saved_by_any_editor(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.yaml").write_bytes("name: x\r\nseed: 3\r\n".encode(encoding))
    assert read_document(tmp_path / "x.yaml") == {"name": "x", "seed": 3}


def test_a_key_that_stands_twice_in_a_config_is_refused_with_its_line() -> None:
    with pytest.raises(YamlInputError, match=r"the key 'seed' appears twice in one mapping, the second time on line 3; keep one"):
        read_yaml("seed: 1\nname: x\nseed: 2\n")
    with pytest.raises(YamlInputError, match="'a' appears twice"):
        read_yaml("x: [{a: 1, a: 1}]")
    merged = "base: &b {a: 1, c: 2}\nmore: &m {d: 4}\nx: {<<: *b, a: 3}\ny: {a: 5, c: 6}\n"
    assert read_yaml(merged)["x"] == {"a": 3, "c": 2}


def test_an_override_that_is_given_twice_with_different_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert read_document(tmp_path / "x.yaml", ["seed=1", "seed=1"]) == {"name": "x", "seed": 1}
    with pytest.raises(UserError, match="override seed is given twice, as '1' and '2'; keep one of them"):
        read_document(tmp_path / "x.yaml", ["seed=1", "seed=2"])


def test_user_folders_are_paths_in_configs_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FolderSet(kind="folder", path="~/photos").path == str(tmp_path / "photos")
    with pytest.raises(ValueError, match="give the whole path"):
        FolderSet(kind="folder", path="~nobody-of-that-name/photos")
    things = {"1.jpg": ["cat", "dog"], "2.jpg": ["cup"]}
    lines = [{"image": image, "instances": [{"category": one} for one in names]} for image, names in things.items()]
    (tmp_path / "objects.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = CliRunner().invoke(app, ["pope", "--objects", "~/objects.jsonl", "--out=~/pope.jsonl", "--num-per-image", "2"])
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "pope.jsonl").is_file()


def test_annotations_and_benchmark_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    line = {"id": "1", "image": "a.png", "captions": ["A cat."], "instances": []}
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "x.jsonl").write_text("\n" + json.dumps(line) + "\n\n", encoding=encoding)
        assert [view.image for view in read_annotations(tmp_path / "x.jsonl", None).views] == ["a.png"]
    for encoding in ("utf-8-sig", "utf-16"):
        table = parse_document("x.tsv", "index\tanswer\r\n1\tA\r\n".encode(encoding))
        assert table.records("rows")[0].value == {"index": "1", "answer": "A"}
    with pytest.raises(ValueError, match=r"x\.json is compressed with gzip"):
        parse_document("x.json", b"\x1f\x8b\x08")


def test_a_key_that_stands_twice_in_annotations_is_refused(tmp_path: Path) -> None:
    text = '{"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "annotations": [{"image_id": 1, "caption": "A.", %s}]}'
    (tmp_path / "x.json").write_text(text % '"caption": "A."')
    assert read_annotations(tmp_path / "x.json", None).views[0].captions == ("A.",)
    (tmp_path / "x.json").write_text(text % '"caption": "B."')
    with pytest.raises(UserError, match="the key 'caption' appears twice in one object, with different values"):
        read_annotations(tmp_path / "x.json", None)


def test_ids_that_stand_twice_in_a_file_of_objects_are_refused(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"}]
    (tmp_path / "x.json").write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": []}))
    done = CliRunner().invoke(app, ["pope", "--objects", str(tmp_path / "x.json"), "--out", str(tmp_path / "out.jsonl")])
    assert isinstance(done.exception, UserError)
    assert "images 1: image 1 appears twice, first at images 0" in str(done.exception)
