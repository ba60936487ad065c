"""Ray's messages to the driver, such as on the loss of a node: a line in the log, with the rest as its details.

Ray prints them to the driver's stdout whatever `log_to_driver` says, with the last lines of its own logs, and has no setting against it.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray._private import worker

from cluster.errors import plain_text

log = logging.getLogger(__name__)

_MAX_LINE_CHARS = 200


@contextmanager
def ray_messages_logged() -> Iterator[None]:
    """Logs Ray's messages as warnings for the duration of a `with` block. All lines but the first are the attribute `details` of the log
    record, for handlers that keep them."""
    printed = worker.print_to_stdstream
    worker.print_to_stdstream = _log
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


def _log(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    for text in data["lines"]:
        first, _, rest = plain_text(text).strip().partition("\n")
        log.warning("Ray: %s", textwrap.shorten(first, _MAX_LINE_CHARS, placeholder=" ..."), extra={"details": rest})
