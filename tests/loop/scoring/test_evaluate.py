"""`vigc evaluate`: what is asked, what is kept, and that the score is that of `vigc score`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from actors.engines.weights import digest_of, read_checkpoint, weight_version
from loop.config.run_config import EMBEDDED_MODEL
from loop.errors import DamagedFileError, InterruptedRunError, UserError
from loop.interruption import interruptible
from loop.monitors.mirror.answering import checkpoint_of
from loop.monitors.progress import RunProgress
from loop.scoring.evaluate import CHUNK_SIZE, Evaluated, EvaluationSpec, evaluate
from loop.scoring.evaluation_tracking import Evaluation, log_evaluation, metrics_of, with_intervals
from loop.scoring.pope import pope_questions, world_objects, write_questions
from loop.scoring.score import print_scores, score_files
from loop.store.commits import RoundCommit
from loop.store.run_store import Store
from policies.benchmarks.base import OPTION_LETTER, SHORT_ANSWER
from tests.actors.pipeline.scripted_engine import image_id_of
from tests.loop.scoring.local_engines import LocalEngines
from tests.loop.store.make_run import RUN, commit_of, flip
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _model_is_checked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loop.scoring.evaluate.check_model", lambda path, engine: None)


def pope_file(folder: Path, num_images: int, splits: tuple[str, ...] = ("random",)) -> Path:
    objects = world_objects(f"shapes:seed=7,num_images={num_images},max_shift=0.2")
    write_questions(folder / "pope.jsonl", pope_questions(objects, splits, 6, None, 0, short=True))
    return folder / "pope.jsonl"


def spec(benchmark: str, data: Path, **changes: Any) -> EvaluationSpec:
    return EvaluationSpec(**{"model": "embedded", "benchmark": benchmark, "data": (data,), **changes})


def run(given: EvaluationSpec, out: Path | None, engines: LocalEngines) -> Evaluated:
    with RunProgress(Console(quiet=True)) as progress:
        return evaluate(given, out, progress, engines.serve)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", (40, 30), "red").save(folder / name)
    return folder


def test_answers_are_in_the_questions_order_and_scored_as_vigc_score_does(tmp_path: Path) -> None:
    data = pope_file(tmp_path, 20, ("random", "popular"))
    engines = LocalEngines(lambda request: "Yes" if "red" in request.prompt else "No, there is none.")
    done = run(spec("pope", data, images="shapes", plain=True), tmp_path / "out", engines)
    asked = lines(data)
    assert done.num_asked == len(asked) == len(engines.asked) > 2 * CHUNK_SIZE
    assert {request.prompt for request in engines.asked} == {one["text"] for one in asked}
    assert [one["question_id"] for one in lines(tmp_path / "out" / "predictions.jsonl")] == [str(one["question_id"]) for one in asked]
    scores = score_files("pope", [data], tmp_path / "out" / "predictions.jsonl")
    assert scores["accuracy"] == 100 * sum(("red" in one["text"]) == (one["label"] == "yes") for one in asked) / len(asked)
    assert {name: done.scores[name] for name in scores} == scores
    assert json.loads((tmp_path / "out" / "score.json").read_text()) == done.scores


def test_finished_chunks_are_never_asked_again_and_damaged_ones_are(tmp_path: Path) -> None:
    given = spec("pope", pope_file(tmp_path, 40), images="shapes")
    total = len(lines(tmp_path / "pope.jsonl"))
    with pytest.raises(RuntimeError, match="engines are lost"):
        run(given, tmp_path / "out", LocalEngines(lambda request: "yes", fails_after=2))
    chunks = sorted((tmp_path / "out" / "chunks").iterdir())
    assert len(chunks) == 2
    assert not (tmp_path / "out" / "score.json").exists()
    second = LocalEngines(lambda request: "no")
    done = run(given, tmp_path / "out", second)
    last = total % CHUNK_SIZE or CHUNK_SIZE
    assert done.num_asked == len(second.asked) == total - CHUNK_SIZE - last
    answers = [one["answer"] for one in lines(tmp_path / "out" / "predictions.jsonl")]
    assert answers == ["no"] * (total - CHUNK_SIZE - last) + ["yes"] * (CHUNK_SIZE + last)
    data = bytearray(chunks[0].read_bytes())
    data[data.index(b"yes")] = ord("Y")
    chunks[0].write_bytes(data)
    third = LocalEngines(lambda request: "no")
    assert run(given, tmp_path / "out", third).num_asked == CHUNK_SIZE
    fourth = LocalEngines(lambda request: "no")
    assert (run(given, tmp_path / "out", fourth).num_asked, fourth.num_started) == (0, 0)


def test_another_evaluation_does_not_go_on_in_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, engines = pope_file(tmp_path, 3), LocalEngines(lambda request: "yes")
    run(spec("pope", data, images="shapes"), tmp_path / "out", engines)
    with pytest.raises(UserError, match="another evaluation: its plain is False, now it is True"):
        run(spec("pope", data, images="shapes", plain=True), tmp_path / "out", engines)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"holds other files, such as mine\.txt"):
        run(spec("pope", data, images="shapes"), tmp_path / "other", engines)
    monkeypatch.chdir(tmp_path)
    folders = {run(spec("pope", data, images="shapes", plain=plain), None, engines).folder for plain in (False, True, False)}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {Path("evaluations")}


def test_other_weights_or_another_tokenizer_are_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, engines = pope_file(tmp_path, 3), LocalEngines(lambda request: "yes")
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    first = run(spec("pope", data, images="shapes", model=str(tmp_path / "model")), None, engines).folder
    assert run(spec("pope", data, images="shapes"), None, engines).folder == first
    (tmp_path / "model" / "chat_template.jinja").write_text("other")
    assert run(spec("pope", data, images="shapes", model=str(tmp_path / "model")), None, engines).folder != first


def test_missing_images_are_named_and_only_left_out_when_asked_to(tmp_path: Path) -> None:
    data = tmp_path / "pope.jsonl"
    questions = [
        {"question_id": number, "image": f"{number}.jpg", "text": "Is there a cat in the image?", "label": "yes"} for number in range(4)
    ]
    data.write_text("\n".join(map(json.dumps, questions)))
    given, engines = spec("pope", data, images=str(photos(tmp_path / "photos", "0.jpg", "1.jpg"))), LocalEngines(lambda request: "yes")
    (tmp_path / "photos" / "2.jpg").write_text("broken")
    with pytest.raises(UserError, match=r"(?s)2\.jpg: not a readable.*3\.jpg: does not exist.*\n2 of 4 questions"):
        run(given, tmp_path / "out", engines)
    done = run(spec("pope", data, images=str(tmp_path / "photos"), allow_missing_images=True), tmp_path / "out", engines)
    assert (done.scores["accuracy"], done.scores["num_questions"], done.scores["num_left_out"]) == (100, 2, 2)
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "2.jpg")
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "3.jpg")
    assert run(given, tmp_path / "out", engines).scores["num_questions"] == 4


def test_each_benchmark_is_asked_in_its_own_words(tmp_path: Path) -> None:
    files = {
        "okvqa": [{"question_id": "1", "sent": "What is it?", "label": {"cat": 1.0}, "img_id": "a.jpg"}],
        "scienceqa": [{"id": "1", "text": "Why?", "choices": ["x", "y"], "answer": 1}],
        "chair": [{"image_id": "a", "captions": ["A cat."], "instance_categories": ["cat"]}],
        "captions": [{"image_id": "a", "captions": ["A cat on a mat."]}],
        "llava-bench": [{"question_id": 1, "image": "a.jpg", "text": "What is it?", "category": "conv"}],
        "aokvqa": [{
            "question_id": "1", "image_id": "a", "question": "What is it?", "choices": ["cat", "dog"], "correct_choice_idx": 0,
            "direct_answers": ["cat"] * 10, "difficult_direct_answer": False,
        }],
    }  # fmt: skip
    replies = {
        "okvqa": "cat", "scienceqa": "B", "chair": "A cat and a dog.", "captions": "A cat on a mat", "llava-bench": "It is a cat.",
        "aokvqa": "A",
    }  # fmt: skip
    folder, prompts, records, scores = photos(tmp_path / "photos", "a.jpg"), {}, {}, {}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        engines = LocalEngines(lambda request, name=name: replies[name])
        scores[name] = run(spec(name, tmp_path / f"{name}.json", images=str(folder)), tmp_path / name, engines).scores
        prompts[name] = [request.prompt for request in engines.asked]
        records[name] = lines(tmp_path / name / "predictions.jsonl")
    assert prompts["okvqa"] == [f"What is it?\n{SHORT_ANSWER}"]
    assert prompts["scienceqa"] == [f"Why?\nA. x\nB. y\n{OPTION_LETTER}"]
    assert prompts["aokvqa"] == [f"What is it?\nA. cat\nB. dog\n{OPTION_LETTER}", f"What is it?\n{SHORT_ANSWER}"]
    assert prompts["llava-bench"] == ["What is it?"]
    assert "Describe" in prompts["chair"][0]
    assert "caption" in prompts["captions"][0]
    assert scores["captions"]["bleu_4"] == pytest.approx(100)
    assert records["captions"] == [{"image_id": "a", "caption": "A cat on a mat"}]
    assert records["chair"] == [{"image_id": "a", "caption": "A cat and a dog."}]
    assert records["aokvqa"] == [{"question_id": "1", "multiple_choice": "A", "direct_answer": "A"}]
    assert (scores["okvqa"]["accuracy"], scores["scienceqa"]["accuracy"], scores["chair"]["chair_i"]) == (100, 100, 50)
    assert (scores["aokvqa"]["multiple_choice"], scores["aokvqa"]["direct_answer"]) == (100, 0)
    assert scores["scienceqa"]["num_blank_images"] == 1
    assert scores["llava-bench"] == {}
    assert not (tmp_path / "llava-bench" / "score.json").exists()


def test_answers_are_read_behind_their_reasoning_and_those_that_it_cut_off_are_named(tmp_path: Path) -> None:
    data, shown = pope_file(tmp_path, 20), io.StringIO()
    engines = LocalEngines(lambda request: "<think>No?" if "red" in request.prompt else "<think>Yes?</think>\n\nNo.")
    with RunProgress(Console(file=shown, width=200)) as progress:
        done = evaluate(spec("pope", data, images="shapes"), tmp_path / "out", progress, engines.serve)
    num_cut = sum("red" in one["text"] for one in lines(data))
    assert done.scores["num_unparsable"] == num_cut > 0
    assert done.scores["yes_ratio"] == 0
    assert f"{num_cut} of {len(lines(data))} answers end before their reasoning does" in shown.getvalue()
    assert lines(tmp_path / "out" / "predictions.jsonl")[0]["answer"].startswith("<think>")


def test_mmbench_is_asked_in_every_rotation(tmp_path: Path) -> None:
    (tmp_path / "mm.tsv").write_text("index\tquestion\tA\tB\tC\tanswer\tcategory\timage\n5\tWhich?\tx\ty\tz\tB\tc\ta.jpg\n")
    folder = str(photos(tmp_path / "photos", "a.jpg"))
    engines = LocalEngines(lambda request: next(line[0] for line in request.prompt.splitlines() if line.endswith(" y")))
    done = run(spec("mmbench", tmp_path / "mm.tsv", images=folder), tmp_path / "right", engines)
    assert (done.num_asked, done.scores["accuracy"]) == (3, 100)
    assert {image_id_of(request) for request in engines.asked} == {"a.jpg"}
    biased = run(spec("mmbench", tmp_path / "mm.tsv", images=folder), tmp_path / "biased", LocalEngines(lambda request: "B"))
    assert (biased.scores["accuracy"], biased.scores["vanilla_accuracy"]) == (0, 100)


@pytest.mark.parametrize(("changes", "says"), [
    ({"benchmark": "nothing"}, "unknown benchmark"),
    ({"engine": {"dtype": "int3"}}, "dtype"),
    ({"num_engines": 0}, "num_engines"),
    ({"max_new_tokens": 0}, "expected at least 1"),
    ({"split": "other"}, "--split"),
    ({"images": "/nowhere"}, "does not exist"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    given = spec(**{"benchmark": "pope", "data": pope_file(tmp_path, 3), "images": "shapes", **changes})
    with pytest.raises(UserError, match=says):
        run(given, tmp_path / "out", LocalEngines(lambda request: "yes"))


def run_of_the_embedded_model(folder: Path) -> RoundCommit:
    """A run whose champion is the seed model."""
    with Store.create(folder, RUN).locked() as store:
        made = store.checkpoint_dir("round-0000")
        shutil.copytree(EMBEDDED_MODEL, made, dirs_exist_ok=True)
        receipt = store.publish_checkpoint(made, "round-0000")
        champion = weight_version(0, digest_of(read_checkpoint(EMBEDDED_MODEL)))
        commit = commit_of(store, champion=champion, champion_path=receipt.path, files=receipt.files)
        store.commit(commit)
    return commit


def test_of_a_run_the_champion_is_asked(tmp_path: Path) -> None:
    commit = run_of_the_embedded_model(tmp_path / "run")
    given = spec("pope", pope_file(tmp_path, 3), images="shapes", model=str(tmp_path / "run"))
    run(given, tmp_path / "out", LocalEngines(lambda request: "yes"))
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["content"]["model"] == commit.champion
    weights = tmp_path / "run" / "checkpoints" / "round-0000" / "model.safetensors"
    flip(weights, weights.stat().st_size - 1)
    with pytest.raises(DamagedFileError, match="round-0000"):
        run(given, tmp_path / "out2", LocalEngines(lambda request: "yes"))


def test_mlflow_gets_one_run_of_an_evaluation_however_often_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes seconds to be made
    given = spec("pope", pope_file(tmp_path, 3, ("random", "popular")), images="shapes", experiment="benchmarks")
    for _ in range(2):
        done = run(given, tmp_path / "out", LocalEngines(lambda request: "yes"))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("benchmarks")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert (logged.info.status, logged.info.run_name) == ("FINISHED", "out")
    parameters = logged.data.params
    assert (parameters["benchmark"], parameters["model"], parameters["engine.dtype"]) == ("pope", "embedded", "float32")
    assert parameters["weight_version"] == f"weights-{parameters['weight_digest'][:12]}"
    assert hashlib.sha256(given.data[0].read_bytes()).hexdigest() in parameters["data"]
    assert logged.data.metrics["accuracy"] == done.scores["accuracy"]
    assert logged.data.metrics["by_split/random/f1"] == done.scores["by_split"]["random"]["f1"]
    assert len(client.get_metric_history(logged.info.run_id, "accuracy")) == 1
    assert logged.data.metrics["accuracy_low"] < done.scores["accuracy"] < logged.data.metrics["accuracy_high"]
    (data,) = logged.inputs.dataset_inputs if logged.inputs else []
    assert (data.dataset.name, data.tags[0].value, parameters["data"][2:18]) == ("pope.jsonl", "evaluation", data.dataset.digest)
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert [one.model_id for one in (logged.inputs.model_inputs if logged.inputs else [])] == [model.model_id]
    assert checkpoint_of(model.tags["checkpoint"]) == EMBEDDED_MODEL.resolve()
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {"predictions.jsonl", "score.json"}


def test_an_mlflow_that_does_not_answer_costs_a_bounded_time_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9/mlflow")
    (tmp_path / "score.json").touch()
    assert not log_evaluation(Evaluation(tmp_path, {"digest": "x"}, {}, [tmp_path / "score.json"]), "vigc", timeout_s=0.2)
    assert "does not have this evaluation" in caplog.text
    assert "hunter2" not in caplog.text


def test_figures_have_keys_of_their_own_in_mlflow() -> None:
    scores = {"accuracy": 50.0, "published": False, "synonyms": "our own", "by_category": {"a/b": 1, "a b": 2.0, "a?": 3, "a!": 4, "": 5}}
    assert metrics_of(scores) == {
        "accuracy": 50, "by_category/a.b": 1, "by_category/a b": 2, "by_category/a_": 3, "by_category/a__2": 4, "by_category": 5,
    }  # fmt: skip


def test_accuracies_of_a_known_number_of_questions_have_intervals() -> None:
    found = with_intervals({"accuracy": 50.0, "num_questions": 40, "by_split": {"a": {"accuracy": 100.0, "num_questions": 20, "f1": 9.0}}})
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((35.20, 64.80), abs=0.01)  # Wilson, 20 of 40
    assert (found["by_split"]["a"]["accuracy_low"], found["by_split"]["a"]["accuracy_high"]) == pytest.approx((83.89, 100), abs=0.01)
    assert with_intervals({"accuracy": 50.0, "num_questions": 0, "score": 3}) == {"accuracy": 50.0, "num_questions": 0, "score": 3}


def test_scores_are_shown_whole_in_80_columns(tmp_path: Path) -> None:
    figures = {
        "accuracy": 88.13,
        "precision": 96.02,
        "recall": 80.44,
        "f1": 87.55,
        "yes_ratio": 43.43,
        "num_questions": 2910,
        "num_unparsable": 12,
    }
    scores = {**figures, "by_split": dict.fromkeys(("random", "popular", "adversarial", "a name of more than thirty characters"), figures)}
    shown = io.StringIO()
    print_scores(Console(file=shown, width=80), "pope", scores)
    assert max(map(len, shown.getvalue().splitlines())) <= 80
    assert "\u2026" not in shown.getvalue()
    assert shown.getvalue().count("96.02") == 5
    assert all(word in shown.getvalue() for word in ("adversarial", "unparsable", "questions", "precision"))


def test_a_run_without_a_champion_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", RUN)
    with pytest.raises(UserError, match="no champion yet"):
        run(spec("pope", pope_file(tmp_path, 3), images="shapes", model=str(tmp_path / "run")), None, LocalEngines(lambda request: "yes"))


def test_a_signal_says_how_it_goes_on() -> None:
    says = "the work was interrupted; run the same command to resume"
    with pytest.raises(InterruptedRunError, match=says), interruptible("the work", "run the same command to resume"):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_embedded_model_on_real_engines_is_killed_goes_on_and_scores_the_same(tmp_path: Path) -> None:
    data = pope_file(tmp_path, 100, ("random", "popular", "adversarial"))
    total, chunks = len(lines(data)), tmp_path / "out" / "chunks"
    command = [
        sys.executable, "-m", "loop", "evaluate", "--model", "embedded", "--benchmark", "pope", "--data", str(data), "--images", "shapes",
        "--plain", "--out", str(tmp_path / "out"), "--json", "--no-tracking",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not chunks.exists() or not any(path.suffix == ".json" for path in chunks.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = {path: path.read_bytes() for path in chunks.glob("[0-9]*.json")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {path: path.read_bytes() for path in kept} == kept
    num_kept = sum(len(json.loads(data)["content"]["answers"]) for data in kept.values())
    assert found["num_asked"] == total - num_kept
    scores = score_files("pope", [data], tmp_path / "out" / "predictions.jsonl")
    assert {name: found[name] for name in scores} == scores
    assert scores["accuracy"] > 75  # it was trained on this grammar near shift 0
    assert scores["num_unparsable"] == 0
    assert not (tmp_path / "mlflow.db").exists()
