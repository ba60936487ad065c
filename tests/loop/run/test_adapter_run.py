"""Runs whose engines receive adapters alone, trained with DPO: rounds build on each other's adapters, and an interrupted run ends as an
undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.engines.adapters.files import ADAPTER_FOLDER, read_adapter
from actors.engines.weights import digest_of, read_checkpoint
from loop.config.run_config import EMBEDDED_MODEL, parse_config
from loop.errors import UserError
from loop.run.driver import check
from loop.store.run_store import Store
from tests.loop.run.small_run import CONFIG, first_commits, lose_machine, start, vigc, wait_until, write_config

TRAINING = {
    **CONFIG["training"],
    "frozen": ["vision_tower", "projector", "language_model"],
    "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]},
    "learning_rate": 1e-3,
    "interpolation": 0.75,
    "objective": {"dpo": {"pairs_per_step": 4}},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_loses_its_machine_ends_with_the_adapters_of_an_undisturbed_one(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, training=TRAINING, transport="adapter", tracking={"enabled": False}, retention={"keep_last": 1},
        cluster={"num_engines": 2, "trainer_ranks": 1, "sleep_while_training": True},
    )  # fmt: skip
    undisturbed, lost = tmp_path / "undisturbed", tmp_path / "lost"
    result = vigc("run", str(config), "--run-dir", str(undisturbed), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    driver = start("run", str(config), "--run-dir", str(lost), cwd=tmp_path)
    wait_until(lambda: any(lost.glob("checkpoints/round-0002.steps/step-*[0-9]")), 400)
    lose_machine(driver)
    result = vigc("resume", str(lost), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "training resumed after step" in result.stdout
    assert first_commits(lost, 2) == first_commits(undisturbed, 2)

    store = Store.open(lost)
    assert [commit.state for commit in store.commits()] == ["baseline", "accepted", "accepted"]
    assert store.commits()[1].metrics["dpo_pairs"] > 0
    assert store.commits()[1].metrics["dpo_margin"] > store.commits()[1].metrics["dpo_first_margin"]
    assert store.tombstones() == ["checkpoints/round-0001.pruned.json"]
    adapter = read_adapter(store.local_checkpoint("checkpoints/round-0002") / ADAPTER_FOLDER)
    assert adapter.base_digest == digest_of(read_checkpoint(Path(EMBEDDED_MODEL)))


def test_training_what_an_adapter_cannot_hold_is_refused_before_anything_starts() -> None:
    training = {**TRAINING, "frozen": ["language_model"]}
    with pytest.raises(UserError, match=r"^transport adapter leaves out the trained weights of projector, vision_tower; name them in"):
        check(parse_config({**CONFIG, "training": training, "transport": "adapter"}))
