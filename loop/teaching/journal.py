"""What a teacher has written, on disk: a journal of the finished tasks, and the files made from it.

    journal.sqlite   what was made of the reply to each task
    data.json        LLaVA's format, the pairs that were taken: what `loop.sources.llava_json` reads
    rejected.jsonl   what was not, with reasons
    summary.json     counts, tokens, cost

The journal is the truth. The others are made from it and replaced whole.
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
class Tally:
    """Counts over a journal."""

    num_finished: int = 0
    num_unanswered: int = 0
    """Tasks that were asked, got no answer, and are to be asked again."""
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
            folder: created if it is missing; otherwise it must be empty or hold a journal.
            about: whose texts these are.
            commit_every_s: see `Journal`.
        """
        super().__init__(folder / JOURNAL, {"content": "texts of a teacher", **about}, commit_every_s)
        self.folder = folder

    def is_finished(self, key: str) -> bool:
        document = self.get(key)
        return document is not None and "pairs" in document

    def add(self, task: TeachingTask, reply: Reply, found: TaughtPairs) -> None:
        """One task is finished."""
        about = {"image_id": task.view.image_id, "image": task.view.image, "type": str(task.question_type)}
        rejected = [(str(one.fault), one.text) for one in found.rejected]
        self._put(task.key, reply, {**about, "pairs": found.pairs, "rejected": rejected})

    def charge(self, key: str, reply: Reply) -> None:
        """A task got no answer and is not finished; what it took is remembered all the same."""
        self._put(key, reply, {"failure": reply.failure})

    def tally(self) -> Tally:
        tally = Tally()
        for _, document in self.documents():
            tally.usage += Usage(**document["usage"])
            if "pairs" not in document:
                tally.num_unanswered += 1
                continue
            tally.num_finished += 1
            tally.num_pairs += len(document["pairs"])
            tally.rejected.update(fault for fault, _ in document["rejected"])
            if document["pairs"]:
                tally.num_records += 1
                tally.records_by_type[document["type"]] += 1
        return tally

    def publish(self) -> None:
        """Write `data.json` and `rejected.jsonl` anew, ordered by image and type whatever order the answers came in. Raises `OSError`."""
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
        """With what the task took before."""
        earlier = self.get(key)
        usage = reply.usage if earlier is None else reply.usage + Usage(**earlier["usage"])
        self.put(key, {**document, "usage": asdict(usage)})


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of another once it is whole and durable."""
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
