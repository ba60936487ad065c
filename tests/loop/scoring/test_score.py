"""`vigc score`, the real command: the numbers of the real files, and bad input as clear lines and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loop.cli import app
from loop.errors import UserError
from loop.scoring.score import score_files
from tests.loop.test_cli import vigc
from tests.paths import DATA

real_data = pytest.mark.skipif(not (DATA / "expected").is_dir(), reason="needs ../shared/data, which is not here")
POPE = [
    {"question_id": i, "image": "a.jpg", "text": "Is there a dog in the image?", "label": label} for i, label in enumerate(("yes", "no"))
]


def written(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def scores(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["score", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    return json.loads(done.stdout)


def test_scores_are_one_json_object(tmp_path: Path) -> None:
    data, predictions = written(tmp_path / "pope.jsonl", *POPE), written(tmp_path / "p.json", {"0": "Yes", "1": "Yes, a dog."})
    done = vigc(tmp_path, "score", "pope", "--data", str(data), "--predictions", str(predictions), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "accuracy": 50.0, "precision": 50.0, "recall": 100.0, "f1": pytest.approx(200 / 3), "yes_ratio": 100.0,
        "num_questions": 2, "num_unparsable": 0, "published": False,
    }  # fmt: skip


def test_bad_input_is_lines_and_exit_code_2(tmp_path: Path) -> None:
    data, predictions = written(tmp_path / "pope.jsonl", *POPE), written(tmp_path / "p.json", {"0": 5, "[7]\x1b": "no"})
    done = vigc(tmp_path, "score", "pope", "--data", str(data), "--predictions", str(predictions), "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: pope cannot read these predictions (3 faults); is it the right file?",
        "error: p.json, question_id 0: the answer is 5 (a number); expected a text",
        "error: p.json, question_id [7]\\x1b: question_id '[7]\\x1b' is not in the data; is this its file?",
        "error: p.json has no prediction for 1 of 2 questions (1); predict them, or count them as wrong with --allow-missing",
    ]


def test_scores_are_shown_as_tables(tmp_path: Path) -> None:
    rows = [{**row, "category": "[red]random"} for row in POPE]
    data, predictions = written(tmp_path / "pope.jsonl", *rows), written(tmp_path / "p.jsonl", {"question_id": 1, "answer": "no"})
    done = CliRunner().invoke(app, ["score", "pope", "--data", str(data), "--predictions", str(predictions), "--allow-missing"])
    assert done.exit_code == 0, done.output
    assert "accuracy        50.00" in done.stdout
    assert "[red]random" in done.stdout


def refused(name: str, data: list[Path], predictions: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        score_files(name, data, predictions, **options)
    return str(error.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data, predictions = written(tmp_path / "pope.jsonl", *POPE), written(tmp_path / "p.json", {"0": "yes", "1": "no"})
    assert refused("nope", [data], predictions).startswith("unknown benchmark 'nope'; expected one of ['amber', 'aokvqa', ")
    assert refused("pope", [], predictions) == "pope needs its data; give the file with --data"
    assert refused("pope", [tmp_path / "no.jsonl"], predictions).startswith(f"cannot read {tmp_path / 'no.jsonl'}: No such file")
    assert refused("pope", [data], tmp_path).startswith(f"cannot read {tmp_path}: Is a directory")
    assert refused("chair", [data], predictions).startswith(
        "chair cannot read this data (6 faults); is it the right file?\npope.jsonl, line 1: no "
    )
    assert refused("pope", [data], data).startswith("pope cannot read these predictions (3 faults); is it the right file?\n")
    assert refused("pope", [data], predictions, synonyms=data) == "--synonyms is for chair; leave it out for pope"
    assert refused("pope", [data, data], predictions).startswith("2 question ids, such as 0, are in more than one --data file")
    assert refused("pope", [data], predictions, split="val") == "--split is 'val'; the data has no splits"


def test_a_split_is_scored_alone(tmp_path: Path) -> None:
    rows = [{"id": i, "text": "?", "choices": ["a", "b"], "answer": 0, "split": split} for i, split in enumerate(("test", "val"))]
    data, predictions = tmp_path / "scienceqa.json", written(tmp_path / "p.json", {"1": "A"})
    data.write_text(json.dumps(rows))
    assert score_files("scienceqa", [data], predictions, split="val")["accuracy"] == 100
    both = written(tmp_path / "both.json", {"0": "B", "1": "A"})
    assert score_files("scienceqa", [data], both, split="val")["accuracy"] == 100
    assert score_files("scienceqa", [data], both, split="test")["accuracy"] == 0
    assert score_files("scienceqa", [data], predictions, split="test", allow_missing=True)["accuracy"] == 0
    assert "p.json has no prediction for 1 of 1 questions (0)" in refused("scienceqa", [data], predictions, split="test")
    assert refused("scienceqa", [data], predictions, split="x") == "--split is 'x'; the data has test, val"


def test_chair_takes_the_list_beside_the_data_or_a_given_one_or_our_own(tmp_path: Path) -> None:
    truth = {"image_id": 1, "captions": ["A dog."], "instance_categories": ["dog"]}
    data, captions = written(tmp_path / "truth.jsonl", truth), written(tmp_path / "c.jsonl", {"image_id": 1, "caption": "A dog and a cat."})
    assert score_files("chair", [data], captions)["synonyms"].startswith("our own list")
    assert score_files("chair", [data], captions)["num_mentions"] == 2
    beside = tmp_path / "synonyms.txt"
    beside.write_text("dog, puppy\n")
    found = score_files("chair", [data], captions)
    assert (found["synonyms"], found["num_mentions"]) == (str(beside), 1)
    (tmp_path / "given.txt").write_text("dog\ncat\n")
    assert score_files("chair", [data], captions, synonyms=tmp_path / "given.txt")["num_mentions"] == 2
    beside.write_bytes(b"\xff")
    assert refused("chair", [data], captions) == f"{beside} is not valid UTF-8 text: invalid start byte at byte 0"
    beside.write_text("")
    assert "the synonym list is empty" in refused("chair", [data], captions)
    assert "the synonym list is empty" in refused("chair", [data], captions, published=True)


class Own:
    """A benchmark of the user's own, found as `module:Name`."""

    def read(self, documents: list[Any]) -> list[Any]:
        return []

    def read_predictions(self, document: Any, questions: list[Any], allow_missing: bool) -> list[Any]:
        return [1, 2]

    def score(self, questions: list[Any], predictions: list[Any]) -> dict[str, Any]:
        return {"accuracy": 50.0, "num_questions": len(predictions)}


def test_a_benchmark_of_one_s_own_is_scored(tmp_path: Path) -> None:
    data = written(tmp_path / "x.json", {})
    assert score_files("tests.loop.scoring.test_score:Own", [data], data) == {"accuracy": 50.0, "num_questions": 2, "published": False}
    assert "cannot be built from {'published': True}" in refused("tests.loop.scoring.test_score:Own", [data], data, published=True)


# ---- the real files, as they are


@real_data
def test_the_real_files_are_scored_as_they_are(tmp_path: Path) -> None:
    expected = {
        name: json.loads((DATA / "expected" / f"{name}.json").read_bytes())
        for name in ("okvqa_soft_accuracy", "aokvqa_accuracy", "pope_metrics")
    }
    okvqa = written(tmp_path / "okvqa.json", expected["okvqa_soft_accuracy"]["predictions"])
    assert scores("okvqa", "--data", DATA / "okvqa.json", "--predictions", okvqa)["accuracy"] == pytest.approx(55.016, abs=1e-9)
    aokvqa = written(tmp_path / "aokvqa.json", expected["aokvqa_accuracy"]["predictions"])
    found = scores("aokvqa", "--data", DATA / "aokvqa.json", "--predictions", aokvqa)
    assert {name: found[name] for name in ("multiple_choice", "direct_answer")} == pytest.approx(
        expected["aokvqa_accuracy"]["expected"], abs=1e-9
    )
    rows = [json.loads(line) for line in (DATA / "pope_model_answers.jsonl").read_text().splitlines()]
    for split, of in expected["pope_metrics"]["expected"].items():
        part = written(tmp_path / f"{split}.jsonl", *(row for row in rows if row["category"] == split))
        found = scores("pope", "--data", part, "--predictions", part, "--published")
        assert found["f1"] == pytest.approx(100 * of["f1_score"], abs=1e-9)
        assert found["num_questions"] == of["n"]
    for split in ("random", "popular", "adversarial"):
        file = DATA / f"pope_{split}.jsonl"
        labels = {str(row["question_id"]): row["label"] for row in map(json.loads, file.read_text().splitlines())}
        assert scores("pope", "--data", file, "--predictions", written(tmp_path / "labels.json", labels))["accuracy"] == 100


@real_data
def test_the_real_reviews_and_captions_are_scored_as_they_are() -> None:
    found = scores("llava-bench", "--predictions", DATA / "judge_reviews_wild.jsonl", "--published")
    assert found["by_source"]["llava-v1.5-13b-eval1.jsonl"]["relative_score"] == pytest.approx(80.4, abs=0.06)
    assert found["num_reviews"] == 162
    chair = DATA / "chair"
    found = scores("chair", "--data", chair / "ground_truth.jsonl", "--predictions", chair / "model_captions.jsonl", "--published")
    assert found["by_set"]["llava/Instruction1"]["chair_i"] == pytest.approx(100 * 21 / 119, abs=1e-9)
    assert found["synonyms"] == str(chair / "synonyms.txt")


def test_captions_are_scored_by_the_command(tmp_path: Path) -> None:
    data = tmp_path / "captions.json"
    data.write_text(json.dumps({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "A dog on a mat."}]}))
    found = scores("captions", "--data", data, "--predictions", written(tmp_path / "c.jsonl", {"image_id": 1, "caption": "a dog on a mat"}))
    assert found["bleu_4"] == pytest.approx(100)
    assert (found["cider_d"], found["num_captions"]) == (0, 1)  # with one image no word is rarer than another


@real_data
def test_coco_s_real_files_give_every_image_its_objects(tmp_path: Path) -> None:
    captions = json.loads((DATA / "coco" / "captions.json").read_bytes())["annotations"]
    first = {caption["image_id"]: caption["caption"] for caption in captions}
    predictions = written(tmp_path / "captions.jsonl", *({"image_id": image, "caption": text} for image, text in first.items()))
    found = scores(
        "chair", "--data", DATA / "coco" / "instances.json", "--data", DATA / "coco" / "captions.json", "--predictions", predictions
    )
    assert found["num_captions"] == 70
    assert found["num_mentions"] > 70
    assert found["chair_i"] == found["chair_s"] == 0  # its own caption names nothing that an image has not
