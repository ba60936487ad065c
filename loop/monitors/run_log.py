"""Write `run.log`, the lines that the terminal showed, and `status.json`, the driver's stage and how the last driver ended.

Neither is part of the run's data: no digest covers them, and a failed write is a warning that never ends the run. A local run appends
to its log line by line; a URI cannot be appended to, so there both are rewritten at most every half minute.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.engines.errors import EngineError
from actors.training.job import TrainerError
from cluster.errors import ClusterError
from loop.errors import LoopError, WriteError, printable
from loop.monitors.progress import Stage
from loop.store.storage.base import Storage
from loop.store.storage.local import LocalStorage

logger = logging.getLogger(__name__)

LOG, STATUS = "run.log", "status.json"
Outcome = Literal["finished", "interrupted", "failed"]

_LOCAL_EVERY_S = 2.0
_REMOTE_EVERY_S = 30.0
_MAX_REMOTE_CHARS = 4_000_000
"""Largest log of a run behind a URI, which is rewritten as a whole: its end is kept."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StageStatus(_Document):
    """The stage of the driver at its last write."""

    round: str
    """`round 2/5`; empty before the first."""
    name: str
    done: int
    total: int | None
    unit: str
    details: str
    elapsed_s: float = 0.0
    left_s: float | None = None
    """Estimated; None if there is no estimate."""

    @property
    def title(self) -> str:
        """`round 2/5 generate`."""
        return f"{self.round} {self.name}".strip()

    @property
    def counted(self) -> str:
        """`12/64 shards`; empty if nothing is done and it is not known of how many."""
        of_total = "" if self.total is None else f"/{self.total}"
        return f"{self.done}{of_total} {self.unit}" if self.done or self.total else ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.title, ", ".join(filter(None, (self.counted, self.details))))))


class End(_Document):
    """How a driver ended."""

    at: float
    """Seconds since the epoch of time."""
    outcome: Outcome
    reason: str


class RunStatus(_Document):
    """The last status of the last driver. A driver without an end is running, or was killed."""

    pid: int
    host: str
    started_at: float
    updated_at: float
    stage: StageStatus | None = None
    """The newest stage."""
    beside: list[StageStatus] = Field(default_factory=list)
    """Older stages that go on at the same time."""
    end: End | None = None


def read_status(storage: Storage) -> RunStatus | None:
    """The status of the last driver; None if there is none that can be read."""
    try:
        return RunStatus.model_validate_json(storage.read(STATUS))
    except (OSError, ValidationError):  # no driver has written one, or it is damaged: `vigc status` does without
        return None


class RunLog:
    """Writes what `RunProgress` and the logging of this process report. Thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.RLock()
        self._kept = ""
        self._written_s = float("-inf")
        self._is_broken = False
        now = time.time()
        self._status = RunStatus(pid=os.getpid(), host=socket.gethostname(), started_at=now, updated_at=now)

    def line(self, text: str) -> None:
        """Append lines, stamped with the time."""
        self.text("\n".join(f"{time.strftime('%F %T')} {one}" for one in text.splitlines()))

    def text(self, text: str) -> None:
        """Append a text unchanged, such as a table."""
        with self._lock:
            self._try(lambda: self._append("".join(f"{printable(one)}\n" for one in text.splitlines())))

    def stages(self, stages: Sequence[Stage]) -> None:
        """The driver's stages, the newest last, when one starts or advances; none between stages."""
        *beside, newest = [_status_of(stage) for stage in stages] or [None]
        with self._lock:
            is_other = (newest and newest.name) != (self._status.stage and self._status.stage.name)
            update = {"stage": newest, "beside": beside, "updated_at": time.time()}
            self._status = self._status.model_copy(update=update)
            every_s = _REMOTE_EVERY_S if self._is_remote else 0.0 if is_other else _LOCAL_EVERY_S
            if time.monotonic() - self._written_s >= every_s:
                self._write()

    def end(self, outcome: Outcome, reason: str) -> None:
        """Record the end of the driver. Its last stage stays in the status."""
        reason = printable(reason)
        self.line(f"{outcome}: {reason}")
        with self._lock:
            now = time.time()
            self._status = self._status.model_copy(update={"updated_at": now, "end": End(at=now, outcome=outcome, reason=reason)})
            self._write()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Record how the block ends as the end of the driver."""
        try:
            yield
        except KeyboardInterrupt:
            self.end("interrupted", "stopped by Ctrl-C or SIGTERM")
            raise
        except BaseException as error:
            if not isinstance(error, LoopError | ClusterError | TrainerError | EngineError):
                self.text(traceback.format_exc())
            self.end("failed", f"{type(error).__name__}: {error}")
            raise
        self.end("finished", "the loop is over")

    @property
    def _is_remote(self) -> bool:
        return not isinstance(self._storage, LocalStorage)

    def _write(self) -> None:
        self._written_s = time.monotonic()
        self._try(lambda: self._storage.write(STATUS, self._status.model_dump_json(indent=1).encode() + b"\n"))
        if self._is_remote:
            self._try(lambda: self._storage.write(LOG, self._kept.encode(errors="backslashreplace")))

    def _append(self, text: str) -> None:
        if isinstance(self._storage, LocalStorage):
            with (self._storage.root / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        elif self._kept or not self._storage.size(LOG):
            self._kept = (self._kept + text)[-_MAX_REMOTE_CHARS:]
        else:
            self._kept = (self._storage.read(LOG).decode(errors="replace") + text)[-_MAX_REMOTE_CHARS:]

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, WriteError, pa.ArrowException) as error:  # a log is never worth a run
            if not self._is_broken:
                self._is_broken = True  # before the warning, which is logged through this object
                logger.warning("cannot write %s or %s: %s; the run continues without them", LOG, STATUS, error)


def _status_of(stage: Stage) -> StageStatus:
    return StageStatus(
        round=stage.round, name=stage.name, done=stage.done, total=stage.total, unit=stage.unit, details=printable(stage.details()),
        elapsed_s=stage.elapsed_s, left_s=stage.left_s,
    )  # fmt: skip


class _Handler(logging.Handler):
    """Passes log records to the run's log. A critical one precedes the end of this process without any unwinding."""

    def __init__(self, log: RunLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.CRITICAL:
            self._log.end("failed", record.getMessage())
        else:
            self._log.line(f"{record.levelname} {record.getMessage()}")
            self._log.text(getattr(record, "details", ""))  # of `cluster.resources.messages`: too long for the terminal


@contextmanager
def logged(storage: Storage) -> Iterator[RunLog]:
    """The log of a run while a driver, which must hold the run's lock, works; it includes what this process logs."""
    log = RunLog(storage)
    log.line(f"driver {os.getpid()} on {socket.gethostname()}")
    log.stages([])
    handler = _Handler(log)
    logging.getLogger().addHandler(handler)
    try:
        yield log
    finally:
        logging.getLogger().removeHandler(handler)
