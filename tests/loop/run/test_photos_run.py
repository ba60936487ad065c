"""The loop on photos and words of real people: free text is scored by likelihood, a candidate that learned is accepted, a ruined one is
not."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from loop.config.run_config import parse_config
from loop.monitors.progress import RunProgress
from loop.run import driver
from loop.run.round import run_baseline, run_round
from loop.run.session import open_session
from loop.store.run_store import RunInfo, Store
from policies.scoring.predictions import from_table
from tests.loop.run.photos import train_model, write_sets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUINOUS = 0.5
"""A learning rate at which no model of this kind survives its first steps."""


def test_on_photos_a_candidate_is_accepted_and_a_ruined_one_rejected(tmp_path: Path) -> None:
    write_sets(tmp_path)
    labelled = {"kind": "llava_json", "images": str(tmp_path / "images")}
    dev = {"data": {**labelled, "path": str(tmp_path / "dev.json")}, "num_questions": 100}
    config = parse_config({
        "name": "photos", "rounds": 2, "model": str(train_model(tmp_path, num_steps=100)),
        "seed_data": {"data": {**labelled, "path": str(tmp_path / "seed.json")}, "num_samples": 400},
        "image_sets": [{"kind": "folder", "path": str(tmp_path / "photos")}],
        "held_out": {"dev": dev}, "acceptance_sets": {"dev": dev}, "answer_max_new_tokens": 16,
        "generation": {"type_mix": {"conversation": 1.0}, "num_shards": 2, "num_per_image": 1, "max_new_tokens": 40, "temperature": 0.5},
        "correction": "none", "filters": ["parsable"], "mixing": {"replay": {"seed_share": 0.8}},
        "training": {"num_steps": 40, "batch_size": 16, "learning_rate": 1e-3}, "acceptance": "evidence",
        "cluster": {"num_engines": 1, "trainer_ranks": 1}, "tracking": {"enabled": False},
    })  # fmt: skip
    checked = driver.check(config)
    lines = checked.metrics
    assert "acceptance_sets.dev: likelihood, chosen because 0 of 100 questions have short answers, the others sentences" in lines
    store = Store.create(tmp_path / "run", RunInfo(run_id="photos", config=config.model_dump(mode="json")))
    progress = RunProgress(Console(file=io.StringIO()))
    with store.locked() as locked, open_session(config, checked.data, locked, [], progress) as session:
        session.run.commits.append(run_baseline(session))
        session.run.commits.append(run_round(session, 1))
        session.run.config = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": RUINOUS})})
        session.run.commits.append(run_round(session, 2))
        seed, accepted, rejected = session.run.commits
        predictions, metrics = from_table(locked.read_part(accepted.files[-1]))
    print([commit.decision.reason for commit in (accepted, rejected) if commit.decision], seed.metrics)
    assert not [finding for finding in seed.findings if finding.kind == "blind_set"]
    assert (accepted.state, rejected.state) == ("accepted", "rejected")
    assert accepted.decision is not None
    assert rejected.decision is not None
    assert accepted.metrics["likelihood/dev"] > seed.metrics["likelihood/dev"] > rejected.metrics["candidate_likelihood/dev"]
    assert rejected.metrics["likelihood/dev"] == accepted.metrics["likelihood/dev"]
    assert accepted.decision.reason.startswith("likelihood +")
    assert accepted.decision.numbers["bound"] > 0.0
    assert rejected.decision.reason.startswith("likelihood -")
    assert metrics == {"held_out/dev": "likelihood", "acceptance/dev": "likelihood"}
    assert math.fsum(one.score or 0.0 for one in predictions["held_out/dev"]) / 100 == pytest.approx(accepted.metrics["likelihood/dev"])
    assert all(one.answer for one in predictions["held_out/dev"])
