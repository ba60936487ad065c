"""The state of a run as seen from outside: finished, running, or interrupted."""

from __future__ import annotations

from loop.assembly import build_policies
from loop.config import parse_config
from loop.store import Store


def run_state(store: Store) -> str:
    """`finished` when the stop policy has nothing left to do, `running` while a driver holds the lock, else `interrupted`."""
    config = parse_config(store.read_run().config)
    commits = store.commits()
    if commits and build_policies(config).stop.stop([commit.state for commit in commits[1:]], config.rounds):
        return "finished"
    try:
        with store.storage.exclusive():  # an object store has no lock to look at: its runs read as interrupted until they finish
            return "interrupted"
    except BlockingIOError:
        return "running"
