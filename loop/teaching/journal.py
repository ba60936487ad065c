"""What a teacher has written, on disk: a journal that only grows, and the files made from it.

    journal.jsonl    first line: whose texts these are; then a line per answered task, written whole before the next is begun
    data.json        LLaVA's format, the pairs that were taken: what `loop.sources.llava_json` reads
    rejected.jsonl   what was not, with reasons
    summary.json     counts, tokens, cost

The journal is the truth, the others are made from it and replaced whole. After a kill its last line may be torn and is cut off: that
task is asked again, no other is. It is synced to disk once a second and at its end; a power cut loses the last second at most.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors.durable import fsync
from loop.errors import DamagedFileError, TeachingStoppedError, UserError, one_line, printable
from policies.chat import Reply, Usage
from policies.teaching.output import TaughtPairs
from policies.teaching.prompts import TeachingTask

JOURNAL, DATA, REJECTED, SUMMARY = "journal.jsonl", "data.json", "rejected.jsonl", "summary.json"
_SYNC_EVERY_S = 1.0
_VERSION = 1


@dataclass(slots=True)
class Tally:
    """Counts over a journal."""

    num_finished: int = 0
    num_records: int = 0
    num_pairs: int = 0
    records_by_type: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)


class Journal:
    """The journal of one folder, held by one process from `with` on."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """
        Args:
            folder: made where it is missing; otherwise it must be empty or hold a journal.
            header: whose texts these are; a journal that is there must say the same.
        """
        self.folder = folder
        self.tally = Tally()
        self._header = {"version": _VERSION, **header}
        self._offsets: dict[str, int] = {}
        self._unanswered: set[str] = set()
        self._descriptor = -1
        self._synced_s = time.monotonic()
        self._end = 0

    def __enter__(self) -> Self:
        """
        Raises:
            UserError: the folder cannot be used, another process writes it, or its journal is of other texts.
            DamagedFileError: the journal was altered.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / JOURNAL).exists() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder} holds other files and no {JOURNAL}; choose another --out or an empty folder")
            self._descriptor = os.open(self.folder / JOURNAL, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise UserError(f"{self.folder} is being written by another `vigc teach`; wait for it or choose another --out") from error
        except OSError as error:
            raise UserError(f"--out {self.folder} cannot be written: {error.strerror or error}") from error
        try:
            self._read()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    @property
    def num_unanswered(self) -> int:
        """Tasks that were asked, got no answer, and are to be asked again."""
        return len(self._unanswered)

    def add(self, task: TeachingTask, reply: Reply, found: TaughtPairs) -> None:
        """One task is finished."""
        line = {
            "key": task.key, "image_id": task.view.image_id, "image": task.view.image, "type": str(task.question_type),
            "pairs": found.pairs, "rejected": [(str(one.fault), one.text) for one in found.rejected], "usage": _usage(reply.usage),
        }  # fmt: skip
        self._append(line)

    def charge(self, key: str, reply: Reply) -> None:
        """A task got no answer and is not finished; what it took is remembered all the same."""
        self._append({"unanswered": key, "failure": reply.failure, "usage": _usage(reply.usage)})

    def sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced_s = time.monotonic()

    def publish(self) -> None:
        """Write `data.json` and `rejected.jsonl` anew, ordered by image and type whatever order the answers came in."""
        self.sync()
        with self._replacing(DATA) as data, self._replacing(REJECTED) as rejected:
            data.write("[")
            separator = "\n"
            for line in self._finished():
                if line["pairs"]:
                    data.write(separator + json.dumps(_llava(line)))
                    separator = ",\n"
                for fault, text in line["rejected"]:
                    about = {name: line[name] for name in ("image_id", "image", "type")}
                    rejected.write(json.dumps({**about, "reason": fault, "text": text}) + "\n")
            data.write("\n]\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        with self._replacing(SUMMARY) as stream:
            stream.write(json.dumps(summary, indent=1) + "\n")

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.pwrite(self._descriptor, data, self._end)
            if written != len(data):  # a full disk takes a part
                raise OSError("the disk took only a part of the line")
            if time.monotonic() - self._synced_s > _SYNC_EVERY_S:
                self.sync()
        except OSError as error:
            raise TeachingStoppedError(str(self.folder), f"cannot write {self.folder / JOURNAL}: {error.strerror or error}") from error
        self._count(line, self._end)
        self._end += len(data)

    def _count(self, line: dict[str, Any], offset: int) -> None:
        usage = Usage(**line["usage"])
        self.tally.usage += usage
        if "unanswered" in line:
            self._unanswered.add(line["unanswered"])
            return
        self._unanswered.discard(line["key"])
        self._offsets[line["key"]] = offset
        self.tally.num_finished += 1
        self.tally.num_records += bool(line["pairs"])
        self.tally.num_pairs += len(line["pairs"])
        self.tally.records_by_type[line["type"]] += bool(line["pairs"])
        self.tally.rejected.update(fault for fault, _ in line["rejected"])

    def _read(self) -> None:
        """Take up what is there: check the header, count the lines, cut off a torn one."""
        num_lines = 0
        with open(self._descriptor, "rb", closefd=False) as stream:
            lines = list(islice(stream, 2))  # a header alone is of no texts and may change
            stream.seek(0)
            for line in stream if len(lines) == 2 else ():
                if not line.endswith(b"\n"):
                    break
                num_lines += 1
                self._take(num_lines, line)
                self._end += len(line)
        os.ftruncate(self._descriptor, self._end)
        if self._end == 0:
            data = json.dumps(self._header).encode() + b"\n"
            os.pwrite(self._descriptor, data, 0)
            self._end = len(data)
            self.sync()
            fsync(self.folder)

    def _take(self, number: int, line: bytes) -> None:
        try:
            content = json.loads(line)
            if number == 1:
                changed = [name for name in sorted({*content, *self._header}) if content.get(name) != self._header.get(name)]
            else:
                changed = []
                if "unanswered" not in content:
                    _llava(content)
                self._count(content, self._end)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            remedy = "take that line out, and its task is asked again, or begin in another folder"
            found = f"line {number}: {type(error).__name__} {one_line(error)}"
            raise DamagedFileError(str(self.folder / JOURNAL), "lines that `vigc teach` wrote", found, remedy) from error
        for name in changed:
            raise UserError(
                f"{self.folder} holds texts made with {name} {printable(str(content.get(name)))}, but now it is "
                f"{printable(str(self._header.get(name)))}; go on with the same, or choose another --out"
            )

    def _finished(self) -> Iterator[dict[str, Any]]:
        with open(self._descriptor, "rb", closefd=False) as stream:
            for key in sorted(self._offsets):
                stream.seek(self._offsets[key])
                yield json.loads(stream.readline())

    def _replacing(self, name: str) -> _Replacement:
        return _Replacement(self.folder / name)


class _Replacement:
    """A text file that takes the place of another once it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tmp = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Any:
        self._stream = self._tmp.open("w", encoding="utf-8")
        return self._stream

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()
        if error is not None:
            self._tmp.unlink(missing_ok=True)
            return
        fsync(self._tmp)
        os.replace(self._tmp, self._path)
        fsync(self._path.parent)


def _usage(usage: Usage) -> dict[str, float]:
    return {
        "num_requests": usage.num_requests, "num_input_tokens": usage.num_input_tokens, "num_output_tokens": usage.num_output_tokens,
        "usd": usage.usd,
    }  # fmt: skip


def _llava(line: dict[str, Any]) -> dict[str, Any]:
    turns = []
    for index, (question, answer) in enumerate(line["pairs"]):
        turns.append({"from": "human", "value": f"<image>\n{question}" if index == 0 else question})
        turns.append({"from": "gpt", "value": answer})
    return {"id": line["image_id"], "image": line["image"], "type": line["type"], "conversations": turns}
