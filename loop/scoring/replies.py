"""Replies of a text model on disk, so that nothing is asked twice: a file that only grows, a line per reply.

A line names its request by a hash over all that the reply depends on, and carries a hash of itself. After a kill the last line may be
torn: it is cut off, and that request is made again, no other. Lines are synced to disk once a second and at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors.chat.model import ChatModel
from actors.durable import fsync
from loop.errors import DamagedFileError, UserError, WriteError
from loop.store.documents import canonical_json
from loop.store.files import GO_ON
from policies.chat import Ask, Reply, Usage

_SYNC_EVERY_S = 1.0


class ReplyJournal:
    """The replies of one model, in one file, held by one process from `with` on."""

    def __init__(self, path: Path, model: ChatModel, model_name: str) -> None:
        """
        Args:
            path: made, with its folder, where it is missing.
            model: asked what the file does not have.
            model_name: replies of models of other names are other replies.
        """
        self.path = path
        self.num_asked = 0
        self.usage = Usage()
        """Of this process."""
        self._model = model
        self._model_name = model_name
        self._known: dict[str, Reply] = {}
        self._descriptor = -1
        self._end = 0
        self._synced_s = time.monotonic()

    def __enter__(self) -> Self:
        """
        Raises:
            UserError: the file cannot be used, or another process writes it.
            DamagedFileError: a line was altered.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}; choose another --out") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise UserError(f"{self.path} is being written by another process; wait for it or choose another --out") from error
        except BaseException:
            os.close(self._descriptor)
            raise
        fsync(self.path.parent)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    @property
    def kept(self) -> Usage:
        """What the replies in the file took, whoever asked for them."""
        return sum((reply.usage for reply in self._known.values()), Usage())

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """The reply to every ask: the known ones first, the others as the model gives them. A failure is given out and not kept, so
        that the next run asks again. Raises what the model does, and `WriteError`."""
        missing = []
        for ask in asks:
            known = self._known.get(self._digest(ask))
            if known is None:
                missing.append(ask)
            else:
                yield replace(known, key=ask.key)
        digests = {ask.key: self._digest(ask) for ask in missing}
        assert len(digests) == len(missing), "two asks have one key"
        for reply in self._model.complete(missing):
            self.num_asked += 1
            self.usage += reply.usage
            if not reply.failure:
                self._add(digests[reply.key], reply)
            yield reply

    def _digest(self, ask: Ask) -> str:
        content = [self._model_name, [[one.role, one.text] for one in ask.messages], ask.max_tokens, ask.temperature, ask.seed]
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def _add(self, digest: str, reply: Reply) -> None:
        content = {"request": digest, "text": reply.text, "finish_reason": reply.finish_reason, "usage": asdict(reply.usage)}
        line = json.dumps({**content, "sha256": _checksum(content)}).encode() + b"\n"
        try:
            if os.pwrite(self._descriptor, line, self._end) != len(line):  # a full disk takes a part
                raise OSError("the disk took only a part of a line")
            if time.monotonic() - self._synced_s > _SYNC_EVERY_S:
                os.fsync(self._descriptor)
                self._synced_s = time.monotonic()
        except OSError as error:
            raise WriteError(str(self.path), error.strerror or str(error), GO_ON) from error
        self._end += len(line)
        self._known[digest] = reply

    def _read(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                digest, reply = self._parsed(number, line)
                self._known[digest] = reply
                self._end += len(line)
        os.ftruncate(self._descriptor, self._end)

    def _parsed(self, number: int, line: bytes) -> tuple[str, Reply]:
        try:
            content: dict[str, Any] = json.loads(line)
            if content.pop("sha256") != _checksum(content):
                raise ValueError("its hash is another")
            reply = Reply("", content["text"], Usage(**content["usage"]), content["finish_reason"])
            return content["request"], reply
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            remedy = "take that line out, and its request is made again, or choose another --out"
            raise DamagedFileError(str(self.path), "the lines that were written", f"line {number}: {error}", remedy) from error


def journal_beside(out: Path) -> Path:
    """Where the replies lie that an output file is made from."""
    return out.with_name(out.name + ".replies.jsonl")


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()[:16]
