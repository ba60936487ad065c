"""What is exported trains a model elsewhere: steps of TRL's SFTTrainer on the messages of a run, and of its DPOTrainer on the pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loop.config.run_config import EMBEDDED_MODEL
from loop.export import export
from loop.store.run_store import RunInfo, Store
from tests.loop.export.test_export import KEPT, commit


class Noise:
    """Pictures with something to see."""

    def open(self, image_id: str) -> Image.Image:
        return Image.fromarray(np.random.default_rng(len(image_id)).integers(0, 256, (48, 48, 3), dtype=np.uint8))


QUESTIONS = ("what color is the ring", "where is the star", "what is at the left", "how many are there")


def exported(tmp_path: Path, format: str, **changes: Any) -> Any:
    """Records of a run as `datasets` reads their export."""
    datasets = pytest.importorskip("datasets")
    records = [
        replace(KEPT, record_id=f"r0-s0-{number}", image_id="x" * (number + 1), question=text, answer="a red ring", **changes)
        for number, text in enumerate(QUESTIONS)
    ]
    with Store.create(tmp_path / "run", RunInfo(run_id="x", config={})).locked() as store:
        commit(store, 0, records)
        report = export(store, "all", format, tmp_path / "export", Noise())
    return datasets.load_dataset(str(report.path), split="train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_step_of_trl_on_the_messages_lowers_the_loss_and_moves_the_weights(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    data = exported(tmp_path, "messages")
    model: Any = AutoModelForImageTextToText.from_pretrained(EMBEDDED_MODEL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model, args=options, train_dataset=data, processing_class=AutoProcessor.from_pretrained(EMBEDDED_MODEL))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    moved = {name.split(".")[1] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert {"vision_tower", "multi_modal_projector", "language_model"} <= moved


@pytest.mark.slow
def test_a_step_of_trl_on_the_pairs_prefers_the_chosen_answers(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    data = exported(tmp_path, "trl-dpo", original_answer="a blue star")
    options = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    model: Any = AutoModelForImageTextToText.from_pretrained(EMBEDDED_MODEL)
    trainer = trl.DPOTrainer(model, args=options, train_dataset=data, processing_class=AutoProcessor.from_pretrained(EMBEDDED_MODEL))
    trainer.train()
    first, second = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert first == pytest.approx(0.0, abs=1e-3)
    assert second > 0.01
