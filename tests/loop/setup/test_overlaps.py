"""Sets that share what should be kept apart are named, by config and by training set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loop.config.run_config import parse_config
from loop.setup.data import build_data
from loop.setup.overlaps import overlaps
from tests.loop.sources.image_sets import png
from tests.loop.test_cli import document, shapes


def llava(folder: Path, name: str, pairs: dict[str, str]) -> dict[str, Any]:
    """A file of one question about each image, as a config names it."""
    images = folder / "photos"
    images.mkdir(exist_ok=True)
    entries = []
    for number, (image, question) in enumerate(pairs.items()):
        (images / image).write_bytes(png(number))
        said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "A dog runs over the wet grass."}]
        entries.append({"id": str(number), "image": image, "conversations": said})
    (folder / name).write_text(json.dumps(entries))
    return {"kind": "llava_json", "path": str(folder / name), "images": str(images)}


def found(seed: dict[str, Any], test: dict[str, Any], dev: dict[str, Any], images: dict[str, Any]) -> list[str]:
    config = parse_config(
        document(
            "embedded", seed_data={"data": seed, "num_samples": 4}, held_out={"test": {"data": test, "num_questions": 2}},
            acceptance_sets={"dev": {"data": dev, "num_questions": 2}}, image_sets=[images],
        )
    )  # fmt: skip
    data = build_data(config)
    return [one.line for one in overlaps(config, data.seed, data.questions, data.unlabelled)]


def test_one_file_as_every_set_is_named_for_each_two_of_them(tmp_path: Path) -> None:
    data = llava(tmp_path, "all.json", {"a.png": "What is there?", "b.png": "Who runs?"})
    lines = found(data, data, data, {"kind": "folder", "path": str(tmp_path)})
    assert [line.partition(", which")[0] for line in lines] == [
        "overlap (2): seed_data has 2 of the 2 questions of held_out.test",
        "overlap (2): image_sets.0 has 2 of the 2 images of held_out.test",
        "overlap (2): acceptance_sets.dev has 2 of the 2 questions of held_out.test",
        "overlap (2): seed_data has 2 of the 2 questions of acceptance_sets.dev",
        "overlap (2): image_sets.0 has 2 of the 2 images of acceptance_sets.dev",
    ]
    assert lines[0].endswith("for example: a.png: what is there?"), (
        "an example is part of the digest, which no path of a machine may change"
    )


def test_other_questions_about_an_image_are_an_overlap_of_images(tmp_path: Path) -> None:
    seed = llava(tmp_path, "seed.json", {"a.png": "What is there?", "b.png": "Who runs?"})
    test = llava(tmp_path, "test.json", {"b.png": "Where is the dog?", "c.png": "Who sleeps?"})
    (line,) = found(seed, test, shapes(5), shapes(6))
    assert line.startswith("overlap (1): seed_data has 1 of the 2 images of held_out.test")
    assert line.endswith("for example: b.png")


def test_sets_of_other_seeds_and_images_of_other_folders_share_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    seed = llava(tmp_path / "one", "x.json", {"a.png": "What is there?"})
    test = llava(tmp_path / "two", "x.json", {"a.png": "What is there?"})
    assert found(seed, test, shapes(5), shapes(6)) == []
