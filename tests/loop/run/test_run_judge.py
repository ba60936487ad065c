"""The judge of a run against a real server on loopback: scores, what it has no verdict on, and bounds that hold for the whole run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from actors.chat.endpoint import SpendingCapError
from loop.errors import LoopError
from loop.monitors.progress import RunProgress
from loop.scoring.run_judge import RunJudge
from policies.records import HeldOutQuestion
from policies.scoring.answer_metrics import Judge
from tests.actors.chat.chat_server import Answer, ChatServer
from tests.loop.scoring.test_judge import first_answer

QUESTIONS = [HeldOutQuestion(f"q{number}", "a.jpg", f"What is {number}?", f"Thing {number}.") for number in range(3)]
ASKED = [(question, "A good answer." if number else "A bad answer.") for number, question in enumerate(QUESTIONS)]


def honest(body: dict, number: int) -> Answer:
    """References are worth 8, good answers 8, bad ones 2, wherever they stand."""
    text = body["messages"][1]["content"]
    model = 2 if "A bad answer." in text else 8
    return Answer(f"{model} 8" if first_answer(body).startswith("A ") else f"8 {model}")


def scores(judge: RunJudge, folder: Path) -> list[float | None]:
    with RunProgress(Console(file=io.StringIO())) as progress, progress.stage("judge") as stage:
        return judge.scores(folder, ASKED, stage)


def test_every_answer_is_held_against_its_reference_in_both_orders_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    with ChatServer(honest) as server:
        metric = Judge(endpoint=server.url, model="m")
        assert scores(RunJudge(metric), tmp_path) == [0.2, 0.5, 0.5]
        assert len(server.requests) == 6
        assert all("People who saw the image answered the question:\nThing" in body["messages"][1]["content"] for body in server.requests)
        assert scores(RunJudge(metric), tmp_path) == [0.2, 0.5, 0.5]  # another driver, after a resume
        assert len(server.requests) == 6


def unsure_of_one(body: dict, number: int) -> Answer:
    return Answer("Well.") if "What is 1?" in body["messages"][1]["content"] else honest(body, number)


def test_an_answer_without_a_verdict_has_no_score_and_a_judge_without_any_ends_the_run(tmp_path: Path) -> None:
    with ChatServer(unsure_of_one) as server:
        assert scores(RunJudge(Judge(endpoint=server.url, model="m", num_attempts=2)), tmp_path) == [0.2, None, 0.5]
        assert len(server.requests) == 8
    with (
        ChatServer(lambda body, number: Answer("I cannot tell.")) as server,
        pytest.raises(LoopError, match="gave no verdict on any of 3 answers; the first time it said 'I cannot tell"),
    ):
        scores(RunJudge(Judge(endpoint=server.url, model="other", num_attempts=1)), tmp_path)


@pytest.mark.parametrize(
    ("cap", "said"),
    [
        ({"max_requests": 4}, "was asked 4 times, as often as max_requests allows"),
        ({"max_usd": 4.0, "usd_per_million_input": 1000.0}, "of max_usd = 4; another request could take up to"),
    ],
)
def test_the_bounds_hold_over_all_drivers_of_a_run(tmp_path: Path, cap: dict, said: str) -> None:
    with ChatServer(lambda body, number: Answer(honest(body, number).text, usage=(700, 1))) as server:
        metric = Judge(endpoint=server.url, model="m", max_concurrency=1, **cap)
        with pytest.raises(SpendingCapError, match=said):
            scores(RunJudge(metric), tmp_path)
        num_asked = len(server.requests)
        assert 2 <= num_asked <= 4
        with pytest.raises(SpendingCapError, match=said):
            scores(RunJudge(metric), tmp_path)
        assert len(server.requests) == num_asked
