"""`vigc ensemble` on ScienceQA's questions, against a real server on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.chat.endpoint import Endpoint
from actors.chat.endpoint_options import EndpointOptions
from actors.chat.local import LocalChat
from loop.errors import UserError
from loop.monitors.progress import RunProgress
from loop.scoring.ensembles import Combined, EnsembleFiles, combine
from loop.scoring.score import score_files
from policies.scoring.ensembles import Ensemble
from tests.actors.chat.chat_server import Answer, ChatServer
from tests.actors.chat.text_model import save_text_model
from tests.paths import DATA

SEEN = {"1": "A", "2": "B", "3": "The answer is C.", "4": "who knows"}
READ = {"1": "A", "2": "A", "3": "I cannot see the image.", "4": "D"}


def files(folder: Path, text: dict[str, str] | None = READ) -> EnsembleFiles:
    """Four questions with four choices; B, B, C and D are right."""
    questions = [
        {"id": str(i), "text": f"Question {i}?", "choices": list("wxyz"), "answer": right} for i, right in enumerate((1, 1, 2, 3), 1)
    ]
    for name, content in (("questions", questions), ("seen", SEEN), ("text", text)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return EnsembleFiles("scienceqa", (folder / "questions.json",), folder / "seen.json", None if text is None else folder / "text.json")


def run(given: EnsembleFiles, how: Ensemble, out: Path, server: ChatServer | None = None) -> Combined:
    endpoint = None if server is None else Endpoint(EndpointOptions(server.url, "m", first_backoff_s=0.01, max_attempts=2))
    with RunProgress(Console(quiet=True)) as progress:
        return combine(given, how, endpoint, "m", out, progress)


def answers(out: Path) -> list[tuple[str, str]]:
    return [(one["answer"], one["from"]) for one in map(json.loads, out.read_text().splitlines())]


def test_complement_needs_no_model(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = run(files(tmp_path), Ensemble.COMPLEMENT, out)
    assert answers(out) == [("A", "both"), ("A", "text"), ("C", "model"), ("D", "text")]
    assert (done.scores["accuracy"], done.num_asked) == (50, 0)
    assert done.scores["by_origin"] == {"both": 1, "text": 2, "model": 1}
    assert score_files("scienceqa", [tmp_path / "questions.json"], out)["accuracy"] == 50


def test_the_judge_is_asked_only_where_the_two_differ_and_once(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with ChatServer(lambda body, number: Answer("B")) as server:
        done = run(files(tmp_path), Ensemble.JUDGE, out, server)
        assert run(files(tmp_path), Ensemble.JUDGE, out, server).num_asked == 0
    (body,) = server.requests
    said = body["messages"][1]["content"]
    assert "Question 2?" in said
    assert [line for line in said.splitlines() if line in ("A", "B")] == ["A", "B"]
    assert answers(out) == [("A", "both"), ("B", "judge"), ("C", "model"), ("D", "text")]
    assert (done.scores["accuracy"], done.num_asked) == (75, 1)


@pytest.mark.parametrize("reply", [Answer("Both may be right."), Answer(status=400)])
def test_where_the_judge_gives_no_answer_the_model_that_sees_is_believed(tmp_path: Path, reply: Answer) -> None:
    with ChatServer(lambda body, number: reply if number == 0 else Answer("D")) as server:
        done = run(files(tmp_path, {**READ, "1": "B", "2": "B"}), Ensemble.JUDGE, tmp_path / "out.jsonl", server)
    assert answers(tmp_path / "out.jsonl")[0] == ("A", "model")
    assert (done.num_asked, done.num_failed) == (1, int(reply.status == 400))


def test_without_its_predictions_the_text_model_is_asked_first(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], number: int) -> Answer:
        return Answer("B" if "Two assistants" in body["messages"][1]["content"] else "A")

    with ChatServer(reply) as server:
        done = run(files(tmp_path, None), Ensemble.JUDGE, tmp_path / "out.jsonl", server)
    assert done.num_asked == 4 + 2
    assert answers(tmp_path / "out.jsonl") == [("A", "both"), ("B", "judge"), ("B", "judge"), ("A", "text")]


def test_a_text_model_of_ones_own(tmp_path: Path) -> None:
    model = LocalChat(save_text_model(tmp_path / "model", "the answer is B"))
    with RunProgress(Console(quiet=True)) as progress:
        done = combine(files(tmp_path, None), Ensemble.COMPLEMENT, model, "tiny", tmp_path / "out.jsonl", progress)
    assert (done.scores["accuracy"], done.num_failed) == (50, 0)


@pytest.mark.parametrize("how", [Ensemble.JUDGE, Ensemble.COMPLEMENT])
def test_a_text_model_is_asked_for_where_one_is_needed(tmp_path: Path, how: Ensemble) -> None:
    with pytest.raises(UserError, match="use --endpoint URL and --model NAME, or --text-model PATH"):
        run(files(tmp_path, None), how, tmp_path / "out.jsonl")
    if how is Ensemble.JUDGE:
        with pytest.raises(UserError, match="asks the text model again"):
            run(files(tmp_path), how, tmp_path / "out.jsonl")


def test_benchmarks_without_choices_are_refused(tmp_path: Path) -> None:
    given = files(tmp_path)
    (tmp_path / "pope.jsonl").write_text('{"question_id": 1, "image": "a", "text": "Is it?", "label": "yes"}')
    with pytest.raises(UserError, match="without lettered choices"):
        run(
            EnsembleFiles("pope", (tmp_path / "pope.jsonl",), given.predictions, given.text_predictions),
            Ensemble.COMPLEMENT,
            tmp_path / "out",
        )


def test_real_predictions_are_put_together(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("the folder shared/data with public benchmark files is not here")
    questions = json.loads((DATA / "scienceqa.json").read_text())
    paths = {}
    for name in ("llava-v1.5-13b", "llava_13b_v0"):
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps({one["id"]: one["predictions"][name] for one in questions}))
    given = EnsembleFiles("scienceqa", (DATA / "scienceqa.json",), *paths.values())
    alone = {name: score_files("scienceqa", given.data, path) for name, path in paths.items()}
    done = run(given, Ensemble.COMPLEMENT, tmp_path / "out.jsonl")
    assert done.scores["num_unparsable"] <= min(one["num_unparsable"] for one in alone.values())
    assert done.scores["accuracy"] >= alone["llava_13b_v0"]["accuracy"]
    assert sum(done.scores["by_origin"].values()) == 300
