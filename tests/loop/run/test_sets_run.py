"""A run over the kinds of sets that other tools write: each round draws on another, and what it made goes back to these tools.

One engine and one rank, decided by evidence, with weights that travel through the object store.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loop.sources.shapes.source import ShapesImages
from loop.store.run_store import Store
from tests.loop.run.small_run import CONFIG, vigc, write_config
from tests.loop.sources.image_sets import encoded, write_set
from tests.paths import DATA

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = ("webdataset", "parquet", "hf_dataset")
PHOTOS = DATA / "photos"
NUMBERS = {"low", "high", "hallucinated", "hallucinated_seed", "forgetting/acceptance/dev", "answer_words"}


def photos(folder: Path) -> list[dict[str, Any]]:
    """A folder of eleven photos and a broken one, as a config names it; none where there are no photos here."""
    if not PHOTOS.is_dir():
        return []
    folder.mkdir()
    for path in sorted(PHOTOS.glob("*.jpg"))[:11]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes((folder / path.name).read_bytes()[:2000])
    return [{"kind": "folder", "path": str(folder)}]


def labelled(folder: Path) -> dict[str, Any]:
    """Questions about pictures of the embedded world in VIGC's format, as a config names them; every second picture is cut off."""
    source = ShapesImages(seed=1, min_shift=0.0, max_shift=0.15, num_images=30)
    folder.mkdir()
    entries = []
    for one in source.questions(40, seed=0):
        name = f"{source.image_ids().index(one.image_id)}.png"
        data = encoded(source.open(one.image_id))
        (folder / name).write_bytes(data[:50] if int(name.removesuffix(".png")) % 2 else data)
        entries.append({"image": name, "question": one.question, "answer": [one.answer, one.answer], "type": one.question_type})
    (folder / "data.json").write_text(json.dumps(entries))
    return {"kind": "vigc_json", "path": str(folder / "data.json"), "images": str(folder)}


def test_rounds_draw_on_tars_parquet_files_a_saved_dataset_and_photos_and_set_broken_images_aside(tmp_path: Path) -> None:
    source = ShapesImages(seed=101, min_shift=0.0, max_shift=0.2, num_images=12)
    pictures = [encoded(source.open(image_id)) for image_id in source.image_ids()]
    pictures[5] = pictures[5][:50]
    image_sets = [*(write_set(kind, tmp_path / kind, pictures) for kind in ROUNDS), *photos(tmp_path / "photos")]
    dev = {**CONFIG["acceptance_sets"]["dev"], "seed_domain": True}
    config = write_config(
        tmp_path, rounds=len(image_sets), image_sets=image_sets, filters=["parsable", "length"], acceptance="evidence",
        acceptance_sets={"dev": dev}, transport="object_store",
        seed_data={"data": labelled(tmp_path / "labelled"), "num_samples": 40}, generation={"num_shards": 2},
        training={"num_steps": 2, "batch_size": 8, "learning_rate": 1e-5, "max_unreadable_images": 1},
        cluster={"num_engines": 1, "trainer_ranks": 1},
    )  # fmt: skip

    result = vigc("run", str(config), "--run-dir", "run", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    commits = Store.open(tmp_path / "run").commits()[1:]
    assert len(commits) == len(image_sets)
    assert {(commit.counts["set_aside_images"], commit.counts["rejected_unreadable_image"]) for commit in commits} == {(1, 2)}
    assert all(commit.counts["generated"] == 24 and commit.counts["trained_on"] > 0 for commit in commits)
    assert all(commit.decision.numbers.keys() >= NUMBERS for commit in commits if commit.decision)
    assert commits[0].decision is not None
    assert commits[0].decision.numbers["level"] == pytest.approx(0.05 / sum(1 / number for number in range(1, len(image_sets) + 1)))
    assert {commit.state for commit in commits} == {"rejected"}, "two small steps are no evidence"
    num_accepted = sum(commit.counts["accepted"] for commit in commits)

    told = json.loads(vigc("status", "run", "--json", cwd=tmp_path).stdout)["rounds"][1:]
    for commit, status in zip(commits, told, strict=True):
        (finding,) = (one for one in commit.findings if one.kind == "passed_over_bad_image")
        assert 0 < finding.count < 16
        assert "image" in finding.message
        assert ".png" in finding.example
        assert finding.model_dump() in status["findings"]
        assert str(tmp_path) not in finding.example, "a commit is the same on every machine"
    assert result.stdout.count("passed_over_bad_image") >= 3, "it is printed when a round commits"

    for format in ("vigc", "messages"):
        exported = vigc("export", "run", "--format", format, "--out", format, cwd=tmp_path)
        assert exported.returncode == 0, exported.stderr
        assert exported.stdout.startswith(f"{num_accepted} records")
        assert "`webdataset`, path `train-{000..001}.tar`" in (tmp_path / format / "README.md").read_text()
    document = yaml.safe_load(config.read_text())
    document["seed_data"] = {"data": {"kind": "messages", "path": "messages", "turns": "conversation"}}
    document["held_out"]["near"]["data"] = {"kind": "vigc_json", "path": "vigc/data.json", "images": "vigc/images"}
    config.write_text(yaml.safe_dump(document))
    again = vigc("run", str(config), "--dry-run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
