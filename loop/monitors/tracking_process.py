"""Run the MLflow mirror beside the loop, in its own process.

    driver: commits, states ─► BackgroundMirror ─► one thread ─► child process ─► MLflow
            live points ─► files ───────────────────────────────────┘

`BackgroundMirror` is what the driver uses: a thread that waits and a child process that works, because importing MLflow costs
seconds of processor time, its server may be slow, and it changes the logging and the environment of its process.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, TextIO

import pyarrow as pa

from loop.credentials import masked
from loop.gallery.samples import RoundSamples
from loop.monitors.mirror.facts import RoundFacts
from loop.monitors.mirror.gallery import GalleryWriter
from loop.monitors.mirror.live import LivePoints
from loop.monitors.mirror.records import RecordSource, RunRecords
from loop.monitors.mirror.sending import LiveStreams, watch_system
from loop.monitors.mirror.training import FinishedStage, TrainingMirror
from loop.monitors.monitor import Ending
from loop.monitors.tracking import ChampionFolder, Facts, Mirror, Samples, child_environment, cut
from loop.store.commits import RoundCommit
from policies.records import RECORD_SCHEMA, Record, from_table

logger = logging.getLogger(__name__)

REPLY_TIMEOUT_S = 120.0  # mirroring one round is about fifteen requests of at most a few seconds each
CHILD_EXIT_TIMEOUT_S = 5.0
STREAM_EVERY_S = 3.0
"""From one look for live points to the next; ten times as long while MLflow is away."""
PATIENCE_S = 8.0  # longer waits are explained
CHILD_NICENESS = 10
MAX_FAILURE_CHARACTERS = 600


class MirrorError(RuntimeError):
    """The child process could not mirror a round: MLflow is down, or refused it. It is replayed later."""


class BackgroundMirror:
    """Mirrors while the loop runs: only `finish` waits.

    A daemon thread hands the newest commits to a child process (`python -m loop.monitors.tracking_process`) over its standard input, as
    JSON lines, and reads sample records for it when it asks. Between commits it has the child send the live points that are in files. The
    child is started when it is first needed and ends with this process. An outage is reported once; each later attempt, and `finish`,
    tries again with everything that is missing.
    """

    def __init__(
        self, mirror: Mirror, samples: Samples, champion_folder: ChampionFolder, log_path: Path, *, facts: Facts = lambda _: RoundFacts(),
        live: LivePoints | None = None, on_ids: Callable[[str, str], None] = lambda experiment_id, run_id: None,
        records: RecordSource | None = None,
    ) -> None:  # fmt: skip
        """The functions are called in the thread. The child's output is appended to `log_path`, credentials masked.

        Args:
            facts: what MLflow shows of a round beyond commit and samples.
            live: where the points of running rounds are; files of rounds that MLflow has completely are deleted.
            on_ids: called with the ids of experiment and parent run, when MLflow has something of the run.
            records: of which the child makes the gallery and traces; None for neither.
        """
        self._mirror = mirror
        self._samples = samples
        self._champion_folder = champion_folder
        self._facts = facts
        self._live = live
        self._on_ids = on_ids
        self._records = records
        self._gallery_lacks = False
        self._shown_uri = masked(mirror.tracking_uri)
        self._log_path = log_path
        self._orders: queue.Queue[Ending | None] = queue.Queue()
        """Something is committed, or the loop has ended."""
        self._has_points = threading.Event()
        self._newest: list[RoundCommit] = []
        self._child: subprocess.Popen[str] | None = None
        self._log: threading.Thread | None = None
        self._is_down = False
        self._is_complete = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def log_commits(self, commits: Sequence[RoundCommit]) -> None:
        """Mirror all `commits` of the run so far; returns at once."""
        self._newest = list(commits)
        self._orders.put(None)

    def stream(self) -> None:
        """There are new live points; returns at once."""
        self._has_points.set()

    def finish(self, state: Ending, timeout_s: float = 30.0) -> bool:
        """Mirror what is missing and set the state of the loop; returns whether MLflow has everything.

        Waits `timeout_s` at most, and a few seconds more for a process that had to be killed.
        """
        self._orders.put(state)
        self._thread.join(min(PATIENCE_S, timeout_s))
        if self._thread.is_alive() and timeout_s > PATIENCE_S:
            logger.warning("waiting for MLflow at %s to take what it lacks, at most %.0f s", self._shown_uri, timeout_s)
            self._thread.join(timeout_s - PATIENCE_S)
        if self._thread.is_alive():
            uri = self._shown_uri
            logger.warning("MLflow at %s did not take everything within %.0f s; `vigc resume` replays what it lacks", uri, timeout_s)
            self._stopped.set()
            child = self._child
            if child is not None:
                child.kill()  # which wakes the thread, if it waits for a reply
            self._thread.join(CHILD_EXIT_TIMEOUT_S)
        return self._is_complete

    def _serve(self) -> None:
        closing: Ending | None = None
        while closing is None and not self._stopped.is_set():
            try:
                closing = self._orders.get(timeout=STREAM_EVERY_S * (10 if self._is_down else 1))
                while closing is None and not self._orders.empty():
                    closing = self._orders.get_nowait()
            except queue.Empty:
                if self._has_points.is_set():
                    self._attempt(None, None)
            else:
                self._attempt(self._finished, closing)
        self._drop_child()

    def _attempt(self, finished: Callable[[], dict[str, Any]] | None, closing: Ending | None) -> None:
        """Mirror what is `finished` and what is live; None for what is live alone."""
        try:
            self._has_points.clear()
            self._exchange(finished, closing)
        except Exception as error:
            # The boundary of the mirror: whatever fails in MLflow, its process or the reading of samples, the loop continues.
            self._has_points.set()
            if not isinstance(error, MirrorError):
                self._drop_child()
            if not self._is_down and not self._stopped.is_set():
                uri, reason = self._shown_uri, masked(str(error))
                logger.warning("MLflow at %s lags behind: %s; the next round, or `vigc resume`, replays what it lacks", uri, reason)
            self._is_down = True
        else:
            if self._is_down:
                logger.info("MLflow at %s has caught up", self._shown_uri)
            self._is_down = False
            self._is_complete = closing is not None

    def _exchange(self, finished: Callable[[], dict[str, Any]] | None, closing: Ending | None) -> None:
        child = self._child = self._child or self._start_child()
        message: dict[str, Any] = {"live": {number: str(path) for number, path in self._live.files().items()} if self._live else {}}
        if finished is not None:
            message |= {**finished(), "close": closing}
        while True:
            reply = _ask(child, message)
            if "failed" in reply:
                raise MirrorError(reply["failed"])
            if "of" not in reply:
                break
            message = self._answer(reply["asked"], reply["of"])
        if reply["ids"] is not None:
            self._on_ids(*reply["ids"])
        self._warn_of_gallery(reply["lacking"])
        if self._live is not None:
            for number in reply["complete"]:
                self._live.forget(number)

    def _finished(self) -> dict[str, Any]:
        """What is committed, as the child takes it."""
        folders = {commit.round: self._champion_folder(commit) for commit in self._newest}
        return {
            "commits": [commit.model_dump(mode="json", exclude={"files"}) for commit in self._newest],
            "folders": {number: folder and [str(folder), isinstance(folder, Path)] for number, folder in folders.items()},
            "has_gallery": self._records is not None and self._records.gallery_samples > 0,
            "has_traces": self._records is not None and self._records.num_traces > 0,
        }

    def _answer(self, asked: str, round: int) -> dict[str, Any]:
        """What the child asks for of a round."""
        commit = next(commit for commit in self._newest if commit.round == round)
        if asked == "facts":
            return asdict(self._facts(commit))
        if asked == "records":
            assert self._records is not None, "the child was told whether there are any"
            return asdict(self._records)
        accepted, rejected = self._samples(commit)
        return {"accepted": [asdict(record) for record in accepted], "rejected": [asdict(record) for record in rejected]}

    def _warn_of_gallery(self, lacking: Sequence[str]) -> None:
        """Say once what the gallery lacks; MLflow says it of every round."""
        if lacking and not self._gallery_lacks:
            self._gallery_lacks = True
            logger.warning("the gallery in MLflow is incomplete: %s; further rounds have it in the tag vigc.gallery", masked(lacking[0]))

    def _start_child(self) -> subprocess.Popen[str]:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        log = self._log_path.open("a")
        child = subprocess.Popen(
            [sys.executable, "-m", "loop.monitors.tracking_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            env={**child_environment(), "MLFLOW_TRACKING_URI": self._mirror.tracking_uri},  # MLflow's registry looks for models there
            start_new_session=True,  # the driver handles interrupts from the terminal, and calls `finish` after them
        )
        self._log = threading.Thread(target=_write_masked, args=(child.stderr, log), name="mlflow-log", daemon=True)
        self._log.start()
        plain = {field.name: getattr(self._mirror, field.name) for field in fields(self._mirror)}
        _write_line(child.stdin, {**plain, "parameters": dict(self._mirror.parameters), "source": dict(self._mirror.source)})
        return child

    def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait(CHILD_EXIT_TIMEOUT_S)
        if self._log is not None:
            self._log.join(CHILD_EXIT_TIMEOUT_S)


class TrainingInBackground(BackgroundMirror):
    """Mirrors a training while it goes on."""

    def __init__(
        self, mirror: TrainingMirror, stages: Callable[[], list[FinishedStage]], log_path: Path, live: LivePoints,
        on_ids: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """`stages` says which stages are finished; the rest is as for `BackgroundMirror`."""
        super().__init__(mirror, lambda commit: ([], []), lambda commit: None, log_path, live=live, on_ids=on_ids)
        self._stages = stages

    def log_stages(self) -> None:
        """Mirror all stages that are finished; returns at once."""
        self.log_commits([])

    def _finished(self) -> dict[str, Any]:
        return {"stages": [asdict(stage) for stage in self._stages()]}


def _write_masked(lines: IO[str], log: TextIO) -> None:
    """Append the output of a process until it ends, masked: MLflow may print a tracking URI with its password."""
    with log:
        for line in lines:
            log.write(masked(line))
            log.flush()


def _ask(child: subprocess.Popen[str], message: Mapping[str, Any]) -> dict[str, Any]:
    """Send the child one message and return its reply; a child that does not reply in time is killed.

    Raises:
        OSError: the child is gone.
    """
    assert child.stdout is not None
    deadline = threading.Timer(REPLY_TIMEOUT_S, child.kill)
    deadline.daemon = True
    deadline.start()
    try:
        _write_line(child.stdin, message)
        reply = child.stdout.readline()
    finally:
        deadline.cancel()
    if not reply:
        raise ConnectionError(f"its process ended or did not reply for {REPLY_TIMEOUT_S:.0f} s")
    return json.loads(reply)


def _write_line(stream: IO[str] | None, message: Mapping[str, Any]) -> None:
    assert stream is not None
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _serve_driver() -> None:
    """The child's side: mirror what the driver sends, until standard input is closed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a batch system may send it to every process; the driver still closes the run in MLflow
    os.nice(CHILD_NICENESS)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep the output of libraries out of the replies
    plain = json.loads(sys.stdin.readline())
    mirror = TrainingMirror(**plain) if "stage_names" in plain else Mirror(**plain)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    served = _Served(mirror, lines, replies)
    while True:
        line = lines.get()
        try:
            reply = served.obey(json.loads(line))
        except Exception as error:
            # The boundary of the process: whatever MLflow raises is sent to the driver, which warns and tries again later.
            traceback.print_exc()
            served.streams.forget()
            reply = {"failed": cut(f"{type(error).__name__}: {error}", MAX_FAILURE_CHARACTERS)}
        _write_line(replies, reply)


def _listen(lines: queue.SimpleQueue[str]) -> None:
    """Ends this process when the driver closes the pipe, even while MLflow blocks: a mirror may be interrupted anywhere."""
    for line in iter(sys.stdin.readline, ""):
        lines.put(line)
    os._exit(0)


class _Served:
    """What the child does for the driver."""

    def __init__(self, mirror: Mirror, lines: queue.SimpleQueue[str], replies: IO[str]) -> None:
        self._mirror = mirror
        self._lines = lines
        self._replies = replies
        self._opened: RunRecords | None = None
        self._gallery: GalleryWriter | None = None
        self.streams = LiveStreams(mirror)

    def obey(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what the driver asks for; returns the ids of experiment and parent run, which rounds are complete, and what the gallery
        lacks."""
        self.streams.send({int(number): Path(path) for number, path in message["live"].items()})
        complete: list[int] = []
        lacking: list[str] = []
        if isinstance(self._mirror, TrainingMirror) and "stages" in message:
            complete = _mirror_stages(self._mirror, message)
        elif "commits" in message:
            complete, lacking = self._mirror_commits(message)
        ids = self.streams.ids()
        if ids is not None and "close" not in message:  # something is running
            watch_system(self._mirror.tracking_uri, ids[1])
        return {"ids": ids, "complete": complete, "lacking": lacking}

    def _mirror_commits(self, message: dict[str, Any]) -> tuple[list[int], list[str]]:
        """Mirror what is committed, everything else before the gallery, which takes longest; returns its rounds, and what that lacks."""

        def champion_folder(commit: RoundCommit) -> Path | str | None:
            folder = message["folders"][str(commit.round)]
            if folder is None:
                return None
            text, is_path = folder
            return Path(text) if is_path else text

        commits = [RoundCommit.model_validate(commit) for commit in message["commits"]]
        self._mirror.log_commits(
            commits, self._samples, champion_folder, lambda commit: RoundFacts.from_json(self._asked("facts", commit.round)),
            self._traced if message["has_traces"] else None,
        )  # fmt: skip
        if message["close"] is not None:
            self._mirror.close(message["close"], commits)
        lacking = self._mirror.log_gallery(commits, self._write_pages) if message["has_gallery"] else []
        return [commit.round for commit in commits], lacking

    def _samples(self, commit: RoundCommit) -> tuple[list[Record], list[Record]]:
        answer = self._asked("samples", commit.round)
        return _records(answer["accepted"]), _records(answer["rejected"])

    def _write_pages(self, round: int, folder: Path) -> str:
        self._gallery = self._gallery or GalleryWriter(self._records(round))
        return self._gallery.write(round, folder)

    def _traced(self, commit: RoundCommit) -> RoundSamples:
        return self._records(commit.round).traced(commit)

    def _records(self, round: int) -> RunRecords:
        source = RecordSource(**self._asked("records", round))  # also for each later round, since the driver waits as long for each
        self._opened = self._opened or RunRecords(source)
        return self._opened

    def _asked(self, what: str, round: int) -> dict[str, Any]:
        _write_line(self._replies, {"asked": what, "of": round})
        return json.loads(self._lines.get())


def _mirror_stages(mirror: TrainingMirror, message: dict[str, Any]) -> list[int]:
    """Mirror the finished stages of a training, and its end; returns their numbers."""
    stages = [FinishedStage.from_json(stage) for stage in message["stages"]]
    mirror.log_stages(stages)
    if message["close"] is not None:
        mirror.close_training(message["close"], stages)
    return [stage.number for stage in stages]


def _records(rows: list[dict[str, Any]]) -> list[Record]:
    return from_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA))


if __name__ == "__main__":
    _serve_driver()
