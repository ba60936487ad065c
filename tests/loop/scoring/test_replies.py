"""The journal of replies: what it has is not asked, what was torn is asked again, what was altered is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from loop.errors import DamagedFileError, UserError
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
    model, path = Counting(), tmp_path / "new" / "journal.jsonl"
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


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_line_is_asked_again_and_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    with ReplyJournal(path, Counting(), "m") as journal:
        told(journal, asks(3))
    path.write_bytes(path.read_bytes()[:-cut])
    model = Counting()
    with ReplyJournal(path, model, "m") as journal:
        told(journal, asks(3))
    assert model.asked == ["2"]
    with ReplyJournal(path, model, "m") as journal:
        assert told(journal, asks(3))["2"] == "reply 1 ✓\n"


def test_an_altered_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with ReplyJournal(path, Counting(), "m") as journal:
        told(journal, asks(3))
    path.write_bytes(path.read_bytes().replace(b"reply 2", b"reply 9"))
    with pytest.raises(DamagedFileError, match="line 2"), ReplyJournal(path, Counting(), "m"):
        pass


def test_one_process_at_a_time_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with ReplyJournal(path, Counting(), "m"), pytest.raises(UserError, match="another process"), ReplyJournal(path, Counting(), "m"):
        pass
    with ReplyJournal(path, Counting(), "m") as journal:
        assert len(told(journal, asks(1))) == 1


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), ReplyJournal(tmp_path / "file" / "journal", Counting(), "m"):
        pass
