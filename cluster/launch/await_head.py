"""Wait until the head of a Ray cluster accepts this machine: `python -m cluster.launch.await_head HOST:PORT [SECONDS]`.

Exits with one line if it does not: nothing answers within the time, the token is missing or refused, or Ray or Python differ.
"""

from __future__ import annotations

import sys
import time

from cluster.errors import AddressError
from cluster.resources.head import check_head

_POLL_S = 1.0


def main(address: str, timeout_s: float = 60.0) -> str:
    """Why this machine cannot join; empty if it can."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            check_head(address, address, deadline)
        except AddressError as error:
            return str(error)
        except OSError as error:  # the head is not there yet
            if time.monotonic() > deadline:
                return f"no Ray head answers at {address} within {timeout_s:g} s: {error}; start the head and open its port"
        else:
            return ""
        time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])) or None)
