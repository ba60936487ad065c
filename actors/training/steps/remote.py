"""Step checkpoints behind a URI. Every rank uploads what it alone has, with sizes and hashes of its own, and later fetches what it needs:

    step-00000050/model     the weights that ZeRO does not shard, from rank 0
    step-00000050/rank-0    a rank's shard of DeepSpeed's files, its random state and its share of the loss log

A step counts once the parts of all ranks are there; only then are earlier steps deleted. Ranks may be on any node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from actors.folders import RemoteSteps
from actors.training.distributed import count_over_ranks
from actors.training.job import TrainerError
from actors.training.steps.state import ENGINE, load_engine, load_rank, save_engine, save_rank

_STEP, _MODEL = "step-", "model"
_UNSHARDED = "mp_rank_"
"""How DeepSpeed's names of files begin that every rank reads; names of shards begin with the rank."""
_RANK_FILE = "rank.pt"


class UploadedSteps:
    """Implements `actors.training.steps.checkpoints.StepCheckpoints`."""

    def __init__(self, steps: RemoteSteps, job: str, rank: int, world_size: int) -> None:
        """Args:
        steps: where all ranks upload to.
        job: identifies the job and its number of ranks.
        """
        self._steps = steps
        self._job = job
        self._rank = rank
        self._world_size = world_size

    def save(self, step: int, engine: Any, position: dict[str, Any]) -> None:
        name = _name(step)
        if self._rank == 0:
            self._steps.remove(name)  # parts of an attempt that did not finish: the parts of a step must be of one attempt
        dist.barrier()
        try:
            with self._steps.scratch() as scratch, self._steps.scratch() as shared:
                save_engine(engine, scratch)
                save_rank(step, position, scratch / _RANK_FILE)
                for file in [*scratch.iterdir()]:
                    if file.is_file() and file.name != _RANK_FILE:
                        file.unlink()  # DeepSpeed's script for converting checkpoints
                if self._rank == 0:
                    (shared / ENGINE).mkdir()
                    for file in [*(scratch / ENGINE).glob(f"{_UNSHARDED}*")]:
                        file.rename(shared / ENGINE / file.name)
                    self._steps.publish(shared, f"{name}/{_MODEL}", self._job)
                self._steps.publish(scratch, f"{name}/rank-{self._rank}", self._job)
        except OSError as error:
            raise TrainerError(f"cannot write the step checkpoint {name}: {error}; free some space, then resume") from error
        dist.barrier()
        if self._rank == 0:
            for other in {part.partition("/")[0] for part in self._steps.parts()} - {name}:
                if other.startswith(_STEP):
                    self._steps.remove(other)

    def restore(self, engine: Any) -> dict[str, Any]:
        step = count_over_ranks(newest_whole(self._steps.parts(), self._world_size) if self._rank == 0 else 0, self._world_size)
        if step == 0:
            return {}
        parts = [self._steps.fetch(f"{_name(step)}/{part}", self._job) for part in (_MODEL, f"rank-{self._rank}")]
        if count_over_ranks(int(None not in parts), self._world_size) < self._world_size:
            return {}
        with self._steps.scratch() as scratch:
            for file in (file for part in parts if part is not None for file in part.rglob("*") if file.is_file()):
                target = scratch / ENGINE / file.name if file.parent.name == ENGINE else scratch / file.name
                target.parent.mkdir(exist_ok=True)
                target.symlink_to(file)
            load_engine(engine, scratch)
            position = load_rank(step, scratch / _RANK_FILE)
        dist.barrier()  # ranks of a node share copies
        self._steps.drop_copies(_name(step))
        return position


def newest_whole(parts: Sequence[str], world_size: int) -> int:
    """Steps of the newest step checkpoint of which the parts of all ranks are there; 0 if there is none."""
    wanted = [_MODEL, *(f"rank-{rank}" for rank in range(world_size))]
    steps = sorted({part.partition("/")[0] for part in parts if part.startswith(_STEP)}, reverse=True)
    whole = (name for name in steps if {f"{name}/{part}" for part in wanted} <= set(parts))
    return int(next(whole, f"{_STEP}0").removeprefix(_STEP))


def _name(step: int) -> str:
    return f"{_STEP}{step:08d}"
