"""Averages two checkpoints in a task on the cluster, within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.folders import Folder, RemoteOutput
from actors.training.checkpoint import write_average
from actors.training.job import TrainerError
from cluster.errors import FinalError, short_message
from cluster.fleet.failures import root_cause

_MAX_RETRIES = 2
"""After a process or node of the task was lost; the task writes the same again."""


def average(
    older: Folder, newer: Folder, decay: float, output: Path | RemoteOutput, *, timeout_s: float, options: Mapping[str, Any]
) -> str:
    """Write the average of two checkpoints where the Ray `options` of the task say; see `actors.training.checkpoint.write_average`.

    Returns:
        the digest of the weights.

    Raises:
        FinalError: the task raised it, such as for a store that it cannot write.
        TrainerError: the task failed, or did not end within `timeout_s` seconds.
    """
    task = ray.remote(write_average).options(**options, max_retries=_MAX_RETRIES).remote(older, newer, decay, output)
    try:
        return ray.get(task, timeout=timeout_s)
    except GetTimeoutError as error:
        ray.cancel(task, force=True)
        advice = "find out what is slow, then continue with `vigc resume`"
        raise TrainerError(f"the average of two checkpoints was not written within {timeout_s:g} s; {advice}") from error
    except RayError as error:
        cause = root_cause(error)
        if isinstance(cause, FinalError):
            raise cause from error
        raise TrainerError(f"the average of two checkpoints could not be written: {short_message(cause)}") from error
