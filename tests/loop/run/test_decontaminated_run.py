"""A run whose unlabelled images hold copies of tested ones: no record is about them, also after a lost machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loop.sources.shapes.source import ShapesImages
from loop.store.run_store import Store
from policies.records import from_table
from tests.loop.run.small_run import CONFIG, lose_machine, start, vigc, wait_until, write_config
from tests.pictures import copy_of, save

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORLD = ShapesImages(seed=901, min_shift=0.0, max_shift=0.2, num_images=40)
NUM_TESTED, NUM_COPIES = 10, 4
HELD_OUT = "held_out_image"


def held_out(folder: Path) -> dict[str, Any]:
    """Questions about files of the first scenes, as a config names them."""
    entries = []
    for number, one in enumerate(WORLD.questions(NUM_TESTED, seed=0)):
        save(WORLD.open(one.image_id), folder / f"{number}.png")
        entries.append({"image": f"{number}.png", "question": one.question, "answer": [one.answer]})
    (folder / "data.json").write_text(json.dumps(entries))
    return {"kind": "vigc_json", "path": str(folder / "data.json"), "images": str(folder)}


def unlabelled(folder: Path) -> dict[str, Any]:
    """The scenes from the last tested ones on, twice as large and compressed."""
    for number, image_id in enumerate(WORLD.image_ids()[NUM_TESTED - NUM_COPIES :]):
        save(copy_of(WORLD.open(image_id), factor=2, quality=90), folder / f"photo-{number:02d}.png")
    return {"kind": "folder", "path": str(folder)}


def test_copies_of_tested_images_are_set_aside_also_after_a_lost_machine(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, rounds=1, filters=["parsable", "length"], image_sets=[unlabelled(tmp_path / "photos")], tracking={"enabled": False},
        held_out={"near": {"data": held_out(tmp_path / "test"), "num_questions": NUM_TESTED}},
        generation={"num_shards": 12}, training={**CONFIG["training"], "num_steps": 2}, cluster={"num_engines": 1, "trainer_ranks": 1},
    )  # fmt: skip
    run_dir = tmp_path / "run"
    driver = start("run", str(config), "--run-dir", str(run_dir), cwd=tmp_path)
    wait_until(lambda: [*run_dir.rglob("records-*.parquet")], 400)
    lose_machine(driver)
    result = vigc("resume", str(run_dir), cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    commit = Store.open(run_dir).commits()[1]
    assert (commit.counts[f"rejected_{HELD_OUT}"], commit.counts["set_aside_images"]) == (2 * NUM_COPIES, NUM_COPIES)
    assert commit.filters[0].seen == commit.counts["generated"] - 2 * NUM_COPIES
    (finding,) = (one for one in commit.findings if one.kind == "held_out_images")
    assert finding.line in result.stdout
    assert finding.line.endswith("for example: photo-00.png: the same picture as 6.png of held_out.near")
    records = [one for path in run_dir.rglob("records-*.parquet") for one in from_table(pq.read_table(path))]
    rejected = {one.image_id for one in records if one.reasons == (HELD_OUT,)}
    assert rejected == {f"photo-{number:02d}.png" for number in range(NUM_COPIES)}
    assert {one.generated_text for one in records if one.image_id in rejected} == {""}, "the model is not asked"
