"""What a finished job leaves in the memory of a process that trains again and shares its device."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from actors.memory import give_back_memory
from actors.training.core import run_local
from tests.actors.training_helpers import Shapes, job_of, save_base


def parameters() -> set[int]:
    gc.collect()
    return {id(one) for one in gc.get_objects() if isinstance(one, torch.nn.Parameter)}


def test_a_finished_job_leaves_no_weights_behind(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    before = parameters()
    for number, (stage, precision) in enumerate([(0, "fp32"), (1, "bf16"), (2, "bf16")]):
        run_local(job_of(base, tmp_path / f"out{number}", num_steps=2, zero_stage=stage, precision=precision), Shapes())
        give_back_memory()
        assert parameters() <= before, f"of ZeRO stage {stage}"
