"""Wait until a Ray cluster has a number of nodes: `python -m cluster.launch.await_nodes NUM [SECONDS]`, with `RAY_ADDRESS` set."""

from __future__ import annotations

import logging
import sys
import time

import ray

_POLL_S = 1.0


def main(num_nodes: int, timeout_s: float = 180.0) -> str:
    """Why the nodes are not there within the time; empty if they are."""
    deadline = time.monotonic() + timeout_s
    found = "no cluster"
    while time.monotonic() < deadline:
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError) as error:  # the head is not there yet
            found = " ".join(str(error).split())
        else:
            alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
            if len(alive) >= num_nodes:
                return ""
            found = f"{len(alive)} node(s): {', '.join(alive)}"
        time.sleep(_POLL_S)
    return f"{num_nodes} Ray node(s) were expected within {timeout_s:g} s; there is {found}; the output of `ray start` is above"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *map(float, sys.argv[2:])) or None)
