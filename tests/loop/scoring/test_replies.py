"""The journal of replies: what it has is not asked, and a failure is asked again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from loop.scoring.replies import ReplyJournal
from policies.chat import Ask, ChatMessage, Reply, Usage


class Counting:
    """Says how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            self.asked.append(ask.key)
            yield Reply(ask.key, f"reply {len(self.asked)} ✓\n", Usage(1, 2, 3, 0.5))


def asks(num: int) -> list[Ask]:
    return [Ask(str(i), (ChatMessage("user", f"question {i}"),)) for i in range(num)]


def told(journal: ReplyJournal, given: list[Ask]) -> dict[str, str]:
    return {reply.key: reply.text for reply in journal.complete(given)}


def test_replies_are_kept_by_what_was_asked_and_of_whom(tmp_path: Path) -> None:
    model, path = Counting(), tmp_path / "new" / "journal.sqlite"
    with ReplyJournal(path, model, "m") as journal:
        first = told(journal, asks(2))
        assert told(journal, asks(3))["2"] == "reply 3 ✓\n"
        assert (journal.num_asked, journal.usage) == (3, Usage(3, 6, 9, 1.5))
    with ReplyJournal(path, model, "m") as journal:
        assert told(journal, asks(2)) == first
        renamed = Ask("other", asks(1)[0].messages)
        assert told(journal, [renamed]) == {"other": first["0"]}
        assert journal.num_asked == 0
    with ReplyJournal(path, model, "another model") as journal:
        assert told(journal, [Ask("0", asks(1)[0].messages)]) == {"0": "reply 4 ✓\n"}
        assert told(journal, [Ask("0", asks(1)[0].messages, seed=1)]) == {"0": "reply 5 ✓\n"}


def test_a_failure_is_given_out_and_asked_again(tmp_path: Path) -> None:
    class Failing(Counting):
        def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
            return (replace(reply, failure="status 400") if reply.key == "1" else reply for reply in super().complete(asks))

    path = tmp_path / "journal.sqlite"
    with ReplyJournal(path, Failing(), "m") as journal:
        assert [reply.failure for reply in journal.complete(asks(3))] == ["", "status 400", ""]
    model = Counting()
    with ReplyJournal(path, model, "m") as journal:
        told(journal, asks(3))
        assert (model.asked, journal.num_asked, journal.kept) == (["1"], 1, Usage(3, 6, 9, 1.5))
