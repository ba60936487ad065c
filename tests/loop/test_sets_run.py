"""A run over the kinds of sets that other tools write: each round draws on another, and what it made goes back to these tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loop.sources.shapes.source import ShapesImages
from loop.store import Store
from tests.loop.image_sets import encoded, write_set
from tests.loop.small_run import vigc, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = ("webdataset", "parquet", "hf_dataset")


def labelled(folder: Path) -> dict[str, Any]:
    """Questions about pictures of the embedded world in VIGC's format, as a config names them."""
    source = ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=30)
    folder.mkdir()
    entries = []
    for one in source.questions(40, seed=0):
        name = f"{source.image_ids().index(one.image_id)}.png"
        (folder / name).write_bytes(encoded(source.open(one.image_id)))
        entries.append({"image": name, "question": one.question, "answer": [one.answer, one.answer], "type": one.question_type})
    (folder / "data.json").write_text(json.dumps(entries))
    return {"kind": "vigc_json", "path": str(folder / "data.json"), "images": str(folder)}


def test_rounds_draw_on_tars_parquet_files_and_a_saved_dataset_and_set_broken_images_aside(tmp_path: Path) -> None:
    source = ShapesImages(seed=101, min_shift=0.0, max_shift=0.2, num_images=12)
    pictures = [encoded(source.open(image_id)) for image_id in source.image_ids()]
    pictures[5] = pictures[5][:50]
    config = write_config(
        tmp_path, rounds=3, image_sets=[write_set(kind, tmp_path / kind, pictures) for kind in ROUNDS], filters=["parsable"],
        seed_data={"data": labelled(tmp_path / "labelled"), "num_samples": 40}, generation={"num_shards": 2},
        training={"num_steps": 2, "batch_size": 8, "learning_rate": 1e-5}, cluster={"num_engines": 1, "trainer_ranks": 1},
    )  # fmt: skip

    result = vigc("run", str(config), "--run-dir", "run", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    commits = Store.open(tmp_path / "run").commits()[1:]
    assert [(commit.counts["set_aside_images"], commit.counts["rejected_unreadable_image"]) for commit in commits] == [(1, 2)] * 3
    assert all(commit.counts["generated"] == 24 and commit.counts["trained_on"] > 0 for commit in commits)

    for format in ("vigc", "messages"):
        exported = vigc("export", "run", "--format", format, "--out", format, cwd=tmp_path)
        assert exported.returncode == 0, exported.stderr
        assert "`webdataset`, path `train-{000..001}.tar`" in (tmp_path / format / "README.md").read_text()
    document = yaml.safe_load(config.read_text())
    document["seed_data"] = {"data": {"kind": "messages", "path": "messages", "turns": "conversation"}}
    document["held_out"]["near"]["data"] = {"kind": "vigc_json", "path": "vigc/data.json", "images": "vigc/images"}
    config.write_text(yaml.safe_dump(document))
    again = vigc("run", str(config), "--dry-run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
