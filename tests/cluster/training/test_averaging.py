from __future__ import annotations

from pathlib import Path

import pytest

from actors.training.checkpoint import write_average
from actors.training.job import TrainerError
from cluster.training.averaging import average
from tests.actors.training.helpers import save_base
from tests.actors.training.test_averaging import checkpoint

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_task_writes_the_average_and_ends_in_one_line(tmp_path: Path) -> None:
    base, other = save_base(tmp_path / "base"), checkpoint(tmp_path / "other", {})
    options = {"num_cpus": 0}
    digest = average(base, base, 0.5, tmp_path / "task", timeout_s=60, options=options)
    assert digest == write_average(base, base, 0.5, tmp_path / "here")
    with pytest.raises(TrainerError, match=r"could not be written: WeightMismatchError: .* they differ in [^\n]*$"):
        average(base, other, 0.5, tmp_path / "none", timeout_s=60, options=options)
    with pytest.raises(TrainerError, match=r"was not written within 0\.001 s"):
        average(base, base, 0.5, tmp_path / "late", timeout_s=0.001, options=options)
