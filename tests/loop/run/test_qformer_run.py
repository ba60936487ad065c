"""Q-Former models through correction and the loop: trained as their authors train them, swapped, and equal to the published inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from actors.engines.weights import read_checkpoint
from loop.models.seed.instructblip import INSTRUCTBLIP
from loop.models.seed.minigpt4 import MINIGPT4
from loop.models.seed.qformer import Anatomy, make_qformer_model
from loop.sources.shapes.source import ShapesImages
from loop.store.run_store import Store
from loop.store.selected import records_of
from tests.actors.pipeline.test_published import assert_equal_and_cheaper
from tests.loop.run.small_run import vigc, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Small:
    """A small model, and what its authors train of it."""

    anatomy: Anatomy
    folder: Path
    trained: frozenset[str]


TRAINED = {
    "instructblip": (INSTRUCTBLIP, {"query_tokens", "qformer", "language_projection"}),
    "minigpt4": (MINIGPT4, {"language_projection"}),
}


@pytest.fixture(scope="module", params=TRAINED)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Trained for about a minute: it writes VIG's form and sentences, most of them wrong."""
    (anatomy, trained), folder = TRAINED[request.param], tmp_path_factory.mktemp("qformer") / "model"
    make_qformer_model(
        anatomy, folder, 17, num_images=2000, vision_steps=150, qformer_steps=80, looking_steps=80, instruction_steps=150, vigc_steps=10
    )  # fmt: skip
    return Small(anatomy, folder, frozenset(trained))


def test_a_qformer_answers_as_the_published_inference_does(small: Small) -> None:
    assert_equal_and_cheaper(small.folder, ShapesImages(5001, 0.0, 0.15, 70))


def test_the_loop_runs_on_a_qformer_model_and_trains_what_its_authors_train(small: Small, tmp_path: Path) -> None:
    training = {"num_steps": 4, "batch_size": 16, "learning_rate": 1e-4, "frozen": list(small.anatomy.frozen)}
    config = write_config(
        tmp_path,
        model=str(small.folder),
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
    started, trained = read_checkpoint(small.folder), read_checkpoint(tmp_path / "runs" / "qformer" / "checkpoints" / "round-0001")
    changed = {name.split(".")[0] for name in started if not torch.equal(started[name], trained[name])}
    assert changed == small.trained
