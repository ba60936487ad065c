"""Questions about an embedded world, written for the benchmark `exact`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loop.cli import app
from loop.errors import UserError
from loop.scoring.world_questions import write_world_questions
from loop.sources.worlds.build import named_images
from policies.benchmarks import BENCHMARKS, Prediction, parse_document


def test_questions_about_a_house_are_written_and_scored_word_by_word(tmp_path: Path) -> None:
    out, world = tmp_path / "house.jsonl", "drawings:styles=fluent,seed=7,num_images=30"
    done = CliRunner().invoke(app, ["questions", world, "--out", str(out)])
    assert done.stdout == f"30 questions in {out}\n"
    benchmark = BENCHMARKS.build("exact")
    questions = benchmark.read([parse_document(out.name, out.read_bytes())])
    source = named_images("drawings", "--images")
    for question in questions:
        assert source.world.grammar.truth(source.scene(question.image), question.text).answer == question.answers[0]
    right = [Prediction(one.question_id, f" {one.answers[0]}\n") for one in questions]
    assert benchmark.score(questions, right)["accuracy"] == 100
    found = benchmark.score(questions, [Prediction(right[0].question_id, right[0].answer.replace("is", "was")), *right[1:]])
    assert found["accuracy"] == pytest.approx(100 * 29 / 30)
    assert found["by_category"] == {"complex": 100, "conversation": 90, "detail": 100}
    assert benchmark.prompt(questions[0]) == questions[0].text


def test_the_same_command_writes_the_same_and_a_seed_others(tmp_path: Path) -> None:
    world = "shapes:seed=7,num_images=10"
    written = []
    for seed in (0, 0, 1):
        assert write_world_questions(world, tmp_path / "questions.jsonl", 12, seed) == 12
        written.append([json.loads(line)["text"] for line in (tmp_path / "questions.jsonl").read_text().splitlines()])
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(("world", "num_questions", "says"), [
    ("photos", 3, "names no embedded world; expected, for example, shapes:seed=7"),
    ("drawings:styles=blob,seed=1,num_images=3", 3, "there is no house 'blob'"),
    ("shapes:seed=1,num_images=3", 0, "--num-questions of 1 or more"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(tmp_path: Path, world: str, num_questions: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        write_world_questions(world, tmp_path / "questions.jsonl", num_questions, 0)
