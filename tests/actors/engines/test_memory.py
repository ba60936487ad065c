"""What a finished job leaves in the memory of a process that trains again and shares its device."""

from __future__ import annotations

import gc
import platform
from pathlib import Path

import psutil
import pytest
import torch

from actors.process.memory import release_memory
from actors.training.core import run_local
from tests.actors.training.helpers import Shapes, job_of, save_base


def parameters() -> set[int]:
    gc.collect()
    return {id(one) for one in gc.get_objects() if isinstance(one, torch.nn.Parameter)}


def test_a_finished_job_leaves_no_weights_behind(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    before = parameters()
    for number, (stage, precision) in enumerate([(0, "fp32"), (1, "bf16"), (2, "bf16")]):
        run_local(job_of(base, tmp_path / f"out{number}", num_steps=2, zero_stage=stage, precision=precision), Shapes())
        release_memory()
        assert parameters() <= before, f"of ZeRO stage {stage}"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose heap does not shrink by itself")
def test_memory_of_many_small_tensors_goes_back_to_the_machine() -> None:
    resident = psutil.Process().memory_info
    release_memory()
    before = resident().rss
    tensors = [torch.ones(16_384) for _ in range(2048)]  # 64 KiB each, below what the C library maps by itself
    last = tensors.pop()
    assert resident().rss - before > 100 << 20
    del tensors
    release_memory()
    assert resident().rss - before < 32 << 20
    assert last.sum() == len(last)
