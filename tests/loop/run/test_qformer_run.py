"""A Q-Former model through correction and the loop: trained as VIGC trains it, swapped, and equal to the published inference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.engines.weights import read_checkpoint
from loop.models.seed.instructblip import FROZEN_BY_VIGC, make_instructblip
from loop.sources.shapes.source import ShapesImages
from loop.store.run_store import Store
from loop.store.selected import records_of
from tests.actors.pipeline.test_published import assert_equal_and_cheaper
from tests.loop.run.small_run import vigc, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def instructblip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for about a minute: it writes VIG's form and sentences, most of them wrong."""
    folder = tmp_path_factory.mktemp("qformer") / "instructblip"
    make_instructblip(
        folder, 17, num_images=2000, vision_steps=150, qformer_steps=80, looking_steps=80, instruction_steps=150, vigc_steps=10
    )  # fmt: skip
    return folder


def test_a_qformer_answers_as_the_published_inference_does(instructblip: Path) -> None:
    assert_equal_and_cheaper(instructblip, ShapesImages(5001, 0.0, 0.15, 70))


def test_the_loop_runs_on_a_qformer_model_and_trains_what_vigc_trains(instructblip: Path, tmp_path: Path) -> None:
    training = {"num_steps": 4, "batch_size": 16, "learning_rate": 1e-4, "frozen": list(FROZEN_BY_VIGC)}
    config = write_config(
        tmp_path,
        model=str(instructblip),
        rounds=1,
        training=training,
        filters=["parsable", "length"],
        cluster={"num_engines": 1, "trainer_ranks": 1},
    )
    result = vigc("run", str(config), "--run-dir", "runs/qformer", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    store = Store.open(tmp_path / "runs" / "qformer")
    baseline, first = store.commits()
    assert first.state == "accepted"
    assert first.champion != baseline.champion
    assert {record.corrector_weight_version for record in records_of(store, first) if record.answer} == {baseline.champion}
    started, trained = read_checkpoint(instructblip), read_checkpoint(tmp_path / "runs" / "qformer" / "checkpoints" / "round-0001")
    changed = {name.split(".")[0] for name in started if not torch.equal(started[name], trained[name])}
    assert changed == {"query_tokens", "qformer", "language_projection"}
