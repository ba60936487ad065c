"""The state of a run as seen from outside: finished, running or interrupted, the driver's stage, and how the last driver ended."""

from __future__ import annotations

import time
from typing import Any

from loop.config.run_config import parse_config
from loop.monitors.run_log import read_status
from loop.setup.assembly import build_policies
from loop.store.run_store import Store
from loop.store.storage.local import LocalStorage

_FRESH_S = 120.0
"""A run behind a URI counts as running if its status was written within this time; it has no file lock to check."""

_KILLED = "the driver did not record its end: it was killed or its machine was lost"


def run_state(store: Store) -> str:
    """`finished` if the stop policy has ended the run, `running` while a driver is alive, otherwise `interrupted`."""
    config = parse_config(store.read_run().config)
    commits = store.commits()
    if commits and build_policies(config).stop.stop([commit.state for commit in commits[1:]], config.rounds):
        return "finished"
    return "running" if _is_driven(store) else "interrupted"


def driver_dict(store: Store, state: str) -> dict[str, Any]:
    """The stages of a running driver, or how the last driver ended, in machine-readable form."""
    status = read_status(store.storage)
    if status is None:
        return {"stage": None, "beside": [], "last_end": None}
    end = status.end.model_dump() if status.end else {"at": status.updated_at, "outcome": "killed", "reason": _KILLED}
    stage = status.stage.model_dump() if status.stage else None
    beside = [one.model_dump() for one in status.beside]
    return {"stage": stage, "beside": beside, "last_end": None if state == "running" else end}


def driver_lines(store: Store, state: str) -> list[str]:
    """The same in words: one line, or none if the run is finished or predates `status.json`."""
    status = read_status(store.storage)
    if status is None or state == "finished":
        return []
    stages = "; beside it ".join(map(str, [status.stage, *status.beside])) if status.stage else ""
    if state == "running":
        return [f"now: {stages or 'between two stages'} (written {max(0.0, time.time() - status.updated_at):.0f} s ago)"]
    where = f" in {stages}" if stages else ""
    if status.end is None:
        return [f"last end, after {_utc(status.updated_at)}{where}: {_KILLED} (process {status.pid} on {status.host})"]
    return [f"last end, {_utc(status.end.at)}{where}: {status.end.outcome}: {status.end.reason}"]


def _is_driven(store: Store) -> bool:
    if not isinstance(store.storage, LocalStorage):
        status = read_status(store.storage)
        return status is not None and status.end is None and time.time() - status.updated_at < _FRESH_S
    try:
        with store.storage.exclusive():
            return False
    except BlockingIOError:
        return True


def _utc(seconds: float) -> str:
    return time.strftime("%m-%d %H:%M:%S UTC", time.gmtime(seconds))
