"""A journal of a text model's replies, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

from loop.journal import Journal
from loop.store.documents import canonical_json
from policies.chat import Ask, ChatModel, Reply, Usage

Verdict = TypeVar("Verdict")


@dataclass(frozen=True, slots=True)
class ReadReply(Generic[Verdict]):
    """A reply and what it says."""

    reply: Reply
    verdict: Verdict | None
    num_attempts: int


class ReplyJournal(Journal):
    """The replies of one model. A key is a hash of everything that the reply depends on."""

    def __init__(self, path: Path, model: ChatModel, model_name: str) -> None:
        """
        Args:
            path: the file; it and its folder are created if missing.
            model: asked for replies that the file does not have.
            model_name: part of the key, so that models do not share replies.
        """
        super().__init__(path, {"content": "replies"})
        self.num_asked = 0
        self.usage = Usage()
        """Usage of this process."""
        self._model = model
        self._model_name = model_name

    @property
    def kept(self) -> Usage:
        """Usage of all replies in the file, also of earlier processes."""
        return sum((Usage(**document["usage"]) for _, document in self.documents()), Usage())

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """Yield the reply to every ask: known replies first, the others as they arrive. Failures are yielded but not kept, so that the
        next run asks again. Raises the model's errors and `WriteError`."""
        missing = []
        for ask in asks:
            known = self.get(self._digest(ask))
            if known is None:
                missing.append(ask)
            else:
                yield Reply(ask.key, known["text"], Usage(**known["usage"]), known["finish_reason"])
        digests = {ask.key: self._digest(ask) for ask in missing}
        assert len(digests) == len(missing), "two asks have one key"
        for reply in self._model.complete(missing):
            self.num_asked += 1
            self.usage += reply.usage
            if not reply.failure:
                content = {"text": reply.text, "finish_reason": reply.finish_reason, "usage": asdict(reply.usage)}
                self.put(digests[reply.key], content)
            yield reply

    def complete_until_read(
        self, keys: Iterable[str], num_attempts: int, ask: Callable[[str, int], Ask], read: Callable[[Reply], Verdict | None],
        done: Callable[[], None],
    ) -> dict[str, ReadReply[Verdict]]:  # fmt: skip
        """The last reply to each of `keys`. Replies without a verdict are requested again with another seed while attempts are left.

        Args:
            keys: of the asks.
            num_attempts: requests at most for each.
            ask: the request for a key in an attempt, from 0.
            read: the verdict in a reply; None if there is none.
            done: called when a key is finished.
        """
        todo = dict.fromkeys(keys)
        found: dict[str, ReadReply[Verdict]] = {}
        for attempt in range(num_attempts):
            for reply in self.complete([ask(key, attempt) for key in todo]):
                found[reply.key] = one = ReadReply(reply, read(reply), attempt + 1)
                if one.verdict is not None or attempt + 1 == num_attempts:
                    del todo[reply.key]
                    done()
        return found

    def _digest(self, ask: Ask) -> str:
        messages = [[one.role, one.text, *(hashlib.sha256(image.data).hexdigest() for image in one.images)] for one in ask.messages]
        content = [self._model_name, messages, ask.max_tokens, ask.temperature, ask.seed]
        return hashlib.sha256(canonical_json(content)).hexdigest()


def journal_beside(out: Path) -> Path:
    """The path of the replies behind an output file."""
    return out.with_name(out.name + ".replies.sqlite")
