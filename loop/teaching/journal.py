"""A teacher's output on disk: a journal of the finished tasks, and the files generated from it.

    journal.sqlite   the parsed reply to each task
    data.json        the accepted pairs in LLaVA's format, as read by `loop.sources.llava_json`
    rejected.jsonl   the rejected texts, with reasons
    summary.json     counts, tokens, cost

The journal is the source of truth. The other files are generated from it and replaced atomically.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from actors.durable import fsync
from loop.errors import UserError
from loop.journal import Journal
from policies.chat import Reply, Usage
from policies.teaching.output import TaughtPairs
from policies.teaching.prompts import TeachingTask

JOURNAL, DATA, REJECTED, SUMMARY = "journal.sqlite", "data.json", "rejected.jsonl", "summary.json"


@dataclass(slots=True)
class TeachingCounts:
    """Counts over a journal."""

    num_finished: int = 0
    num_unanswered: int = 0
    """Tasks without an answer so far, to be asked again."""
    num_records: int = 0
    num_pairs: int = 0
    records_by_type: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)


class TeachingJournal(Journal):
    """The journal of one folder, and the files beside it."""

    def __init__(self, folder: Path, about: Mapping[str, Any], commit_every_s: float = 0.0) -> None:
        """
        Args:
            folder: created if missing; otherwise it must be empty or hold a journal.
            about: facts that all texts share: teacher, source, sampling.
            commit_every_s: see `Journal`.
        """
        super().__init__(folder / JOURNAL, {"content": "texts of a teacher", **about}, commit_every_s)
        self.folder = folder

    def is_finished(self, key: str, image_digest: str | None = None) -> bool:
        """Whether a task has an answer, about an image of this digest if one is given."""
        document = self.get(key)
        if document is None or "pairs" not in document:
            return False
        return image_digest is None or document.get("image_digest", "") == image_digest

    def add(self, task: TeachingTask, reply: Reply, found: TaughtPairs) -> None:
        """Store a finished task, in place of an answer about an earlier state of its image."""
        about = {"image_id": task.view.image_id, "image": task.view.image, "type": str(task.question_type)}
        about |= {"image_digest": task.view.digest} if task.view.digest else {}
        rejected = [(str(one.fault), one.text) for one in found.rejected]
        self._put(task.key, reply, {**about, "pairs": found.pairs, "rejected": rejected})

    def charge(self, key: str, reply: Reply) -> None:
        """Store the usage of a task that got no answer and is not finished."""
        self._put(key, reply, {"failure": reply.failure})

    def counts(self) -> TeachingCounts:
        counts = TeachingCounts()
        for _, document in self.documents():
            counts.usage += Usage(**document["usage"])
            if "pairs" not in document:
                counts.num_unanswered += 1
                continue
            counts.num_finished += 1
            counts.num_pairs += len(document["pairs"])
            counts.rejected.update(fault for fault, _ in document["rejected"])
            if document["pairs"]:
                counts.num_records += 1
                counts.records_by_type[document["type"]] += 1
        return counts

    def publish(self) -> None:
        """Rewrite `data.json` and `rejected.jsonl`, ordered by image and type regardless of the order of answers. Raises `OSError`."""
        self.commit()
        with _replacing(self.folder / DATA) as data, _replacing(self.folder / REJECTED) as rejected:
            data.write("[")
            separator = "\n"
            for _, document in self.documents():
                if document.get("pairs"):
                    data.write(separator + json.dumps(_llava(document)))
                    separator = ",\n"
                for fault, text in document.get("rejected", ()):
                    about = {name: document[name] for name in ("image_id", "image", "type")}
                    rejected.write(json.dumps({**about, "reason": fault, "text": text}) + "\n")
            data.write("\n]\n")

    def _prepare(self) -> None:
        super()._prepare()
        if not self.path.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} holds other files and no {JOURNAL}; choose another --out or an empty folder")

    def _put(self, key: str, reply: Reply, document: Mapping[str, Any]) -> None:
        """Store a document, adding the usage of earlier attempts."""
        earlier = self.get(key)
        usage = reply.usage if earlier is None else reply.usage + Usage(**earlier["usage"])
        self.put(key, {**document, "usage": asdict(usage)})


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A text file that replaces `path` once it is complete and durable."""
    tmp = path.with_name(f".{path.name}.tmp")
    try:
        with tmp.open("w", encoding="utf-8") as stream:
            yield stream
        fsync(tmp)
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def _llava(document: Mapping[str, Any]) -> dict[str, Any]:
    turns = []
    for index, (question, answer) in enumerate(document["pairs"]):
        turns.append({"from": "human", "value": f"<image>\n{question}" if index == 0 else question})
        turns.append({"from": "gpt", "value": answer})
    return {"id": document["image_id"], "image": document["image"], "type": document["type"], "conversations": turns}
