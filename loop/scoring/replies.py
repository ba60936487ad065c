"""Replies of a text model, kept so that nothing is asked twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from actors.chat.model import ChatModel
from loop.journal import Journal
from loop.store.documents import canonical_json
from policies.chat import Ask, Reply, Usage


class ReplyJournal(Journal):
    """The replies of one model. A key is a hash over all that the reply depends on."""

    def __init__(self, path: Path, model: ChatModel, model_name: str) -> None:
        """
        Args:
            path: of the file; it is created, with its folder, if it is missing.
            model: asked what the file does not have.
            model_name: replies of models of other names are other replies.
        """
        super().__init__(path, {"content": "replies"})
        self.num_asked = 0
        self.usage = Usage()
        """Of this process."""
        self._model = model
        self._model_name = model_name

    @property
    def kept(self) -> Usage:
        """What the replies in the file took, whoever asked for them."""
        return sum((Usage(**document["usage"]) for _, document in self.documents()), Usage())

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """The reply to every ask: the known ones first, the others as the model gives them. A failure is given out and not kept, so
        that the next run asks again. Raises what the model does, and `WriteError`."""
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

    def _digest(self, ask: Ask) -> str:
        content = [self._model_name, [[one.role, one.text] for one in ask.messages], ask.max_tokens, ask.temperature, ask.seed]
        return hashlib.sha256(canonical_json(content)).hexdigest()


def journal_beside(out: Path) -> Path:
    """Where the replies lie that an output file is made from."""
    return out.with_name(out.name + ".replies.sqlite")
