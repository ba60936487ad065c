"""What the acceptance policy is told of a model: its answers to the acceptance sets, and which of them hallucinate."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from loop.config.run_config import AcceptanceSet, HeldOutSet, stored_config
from loop.config.sets import LlavaJsonSet
from loop.errors import SchemaVersionError, UserError
from loop.run.stages.evaluation import answered, blind_sets, stored_predictions
from loop.setup.assembly import HeldOut, build_held_out, check_held_out
from loop.sources.shapes.questions import truth
from loop.sources.shapes.scene import COLORS, SHAPES, scene_of
from loop.sources.shapes.source import ShapesImages
from policies.records import HeldOutQuestion, Prediction
from policies.scoring.answer_metrics import Exact
from policies.scoring.predictions import from_table, to_table
from tests.loop.run.small_run import CONFIG


def predictions(answers: Sequence[str]) -> list[Prediction]:
    return [Prediction(str(index), answer, float(index % 2 == 0), "v1") for index, answer in enumerate(answers)]


def test_hallucinations_are_told_by_the_world_that_knows_its_objects() -> None:
    world = ShapesImages(3, 0.0, 0.1, 4)
    image_id = world.image_ids()[0]
    things = {(thing.color, thing.shape) for thing in scene_of(image_id).things}
    color, shape = next((color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in things)
    asked = f"Is there a {color} {shape}?"
    right = truth(scene_of(image_id), asked).answer
    questions = tuple(HeldOutQuestion(str(index), image_id, asked, right) for index in range(3))
    one = HeldOut("far", world, questions, Exact(), "exact")
    found = answered([one], {"acceptance/far": predictions([f"Yes, there is a {color} {shape}.", right, "Hm."]), "held_out/x": []})
    assert found.hallucinated == {"acceptance/far": [True, False, False]}
    assert found.scores == {"acceptance/far": [1.0, 0.0, 1.0]}
    assert found.measures == {"acceptance/far": "accuracy"}
    assert found.mean_words == pytest.approx((6 + len(right.split()) + 1) / 3)
    assert found.yes_share == {}


@pytest.fixture
def polled(tmp_path: Path) -> LlavaJsonSet:
    """Yes-or-no questions about one photo, the last one answered otherwise."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    texts = [("Is there a cat?", "Yes"), ("Is there a dog?", "No"), ("Is there a cow?", "no, there is none"), ("What is it?", "A cat.")]
    entries = [
        {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": f"<image>\n{q}"}, {"from": "gpt", "value": a}]}
        for q, a in texts
    ]
    for name, chosen in (("polled.json", entries[:3]), ("mixed.json", entries)):
        (tmp_path / name).write_text(json.dumps(chosen))
    return LlavaJsonSet(kind="llava_json", path=str(tmp_path / "polled.json"), images=str(tmp_path))


def test_in_a_yes_or_no_set_a_yes_where_no_is_right_is_a_hallucination(polled: LlavaJsonSet) -> None:
    (one,) = build_held_out({"pope": AcceptanceSet(data=polled, num_questions=3, yes_no=True)}, seed=1)
    check_held_out([one])
    assert (one.metric_name, one.described) == ("yes_no", "pope: yes_no, chosen because yes_no is true")
    right = [question.answer for question in one.questions]
    found = answered([one], {"acceptance/pope": predictions(["Yes."] * 3)})
    assert found.hallucinated == {"acceptance/pope": [None if answer == "Yes" else True for answer in right]}
    assert found.yes_share == {"acceptance/pope": 1.0}
    assert answered([one], {"acceptance/pope": predictions(["No."] * 3)}).yes_share == {"acceptance/pope": 0.0}


def test_without_a_truth_nothing_is_called_a_hallucination(polled: LlavaJsonSet) -> None:
    (one,) = build_held_out({"photos": AcceptanceSet(data=polled, num_questions=3)}, seed=1)
    assert answered([one], {"acceptance/photos": predictions(["Yes."] * 3)}).hallucinated == {}


@pytest.mark.parametrize("changes", [{"yes_no": True}, {"metric": "yes_no"}])
def test_a_yes_or_no_set_with_another_answer_is_refused(polled: LlavaJsonSet, changes: dict[str, Any]) -> None:
    mixed = polled.model_copy(update={"path": polled.path.replace("polled.json", "mixed.json")})
    sets = build_held_out({"pope": AcceptanceSet(data=mixed, **changes)}, seed=1)
    with pytest.raises(
        UserError, match=r"1 of 4 questions of the set pope cannot be scored by the metric yes_no, such as 1#3: its answer 'A"
    ):
        check_held_out(sets)


def test_a_set_has_the_metric_that_fits_its_data_or_the_one_that_the_config_names(polled: LlavaJsonSet) -> None:
    mixed = polled.model_copy(update={"path": polled.path.replace("polled.json", "mixed.json")})
    specs = {"a": HeldOutSet(data=polled), "b": HeldOutSet(data=mixed), "c": HeldOutSet(data=mixed, metric={"vqa": {"instruction": ""}})}
    told = [one.described for one in build_held_out(specs, seed=1)]
    assert told == [
        "a: yes_no, chosen because every answer begins with yes or no",
        "b: vqa, chosen because 4 of 4 questions have short answers",
        "c: vqa, as the config says",
    ]
    assert not any(one.yes_no for one in build_held_out(specs, seed=1))  # nobody said that a wrong yes is a hallucination


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        ("bleu", "unknown metric 'bleu'; expected one of"),
        ({"vqa": {"words": 3}}, "metric 'vqa' cannot be built from {'words': 3}"),
        ("loop.setup.assembly:HeldOut", "metric 'loop.setup.assembly:HeldOut' cannot be built from"),
        ("builtins:dict", "'builtins:dict' is not a valid metric: it has no measure"),
        (
            {"judge": {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}},
            "metric judge: the environment variable",
        ),
    ],
)
def test_a_metric_that_cannot_be_is_refused_before_anything_starts(polled: LlavaJsonSet, metric: Any, problem: str) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        check_held_out(build_held_out({"test": HeldOutSet(data=polled, metric=metric)}, seed=1))


# ---- what a round stores


def table(**sets: tuple[str, list[float | None]]) -> pa.Table:
    given = {name: [Prediction(str(i), "a", score, "v1") for i, score in enumerate(scores)] for name, (_, scores) in sets.items()}
    return to_table(given, {name: metric for name, (metric, _) in sets.items()})


def test_a_run_of_right_and_wrong_is_stored_as_it_always_was() -> None:
    first = pa.Table.from_pylist(
        [{"set": "x", "question_id": str(i), "answer": "a", "correct": i == 0, "weight_version": "v1", "num_tokens": 0} for i in range(2)]
    )
    assert table(x=("exact", [1.0, 0.0])).equals(first, check_metadata=True)
    assert from_table(first) == ({"x": [Prediction("0", "a", 1.0, "v1"), Prediction("1", "a", 0.0, "v1")]}, {"x": "exact"})


def test_graded_scores_are_stored_with_their_metric() -> None:
    predictions, metrics = from_table(table(x=("exact", [1.0]), y=("likelihood", [0.25, 0.5]), z=("judge", [None])))
    assert {name: [one.score for one in given] for name, given in predictions.items()} == {"x": [1.0], "y": [0.25, 0.5], "z": [None]}
    assert metrics == {"x": "exact", "y": "likelihood", "z": "judge"}


def test_predictions_of_another_version_or_metric_are_refused(polled: LlavaJsonSet) -> None:
    (one,) = build_held_out({"x": HeldOutSet(data=polled, metric="vqa")}, seed=1)
    later = table(x=("vqa", [1.0])).replace_schema_metadata({"vigc_prediction_schema": "3"})
    with pytest.raises(SchemaVersionError, match=r"p\.parquet has schema version 3; this vigc-loop reads version 2"):
        stored_predictions("p.parquet", later, {"x": one})
    with pytest.raises(UserError, match=r"p\.parquet: x was scored by the metric exact, and its data ask for vqa now"):
        stored_predictions("p.parquet", table(x=("exact", [1.0])), {"x": one})


def test_a_run_from_before_there_were_metrics_goes_on_word_by_word(polled: LlavaJsonSet) -> None:
    old = {"data": polled.model_dump(mode="json"), "num_questions": 3}
    document = {**CONFIG, "held_out": {"x": dict(old)}, "acceptance_sets": {"y": {**old, "yes_no": True}}}
    config = stored_config(document)
    assert (config.held_out["x"].metric.policy, config.acceptance_sets["y"].metric.policy) == ("exact", "yes_no")
    (one,) = build_held_out(config.acceptance_sets, seed=1)
    given = {"y": [Prediction(q.question_id, "There is none.", 1.0, "v1") for q in one.questions]}  # "none" was no "no" then
    found = stored_predictions("p.parquet", to_table(given, {"y": "exact"}), {"y": one})
    assert [each.score for each in found["y"]] == [float(q.answer.lower().startswith("no")) for q in one.questions]


# ---- sets that show nothing


def test_a_set_that_the_seed_model_has_all_wrong_or_all_right_is_named(polled: LlavaJsonSet) -> None:
    sets = build_held_out({name: HeldOutSet(data=polled, num_questions=3) for name in "abc"}, seed=1)
    scores = {"a": [0.0] * 3, "b": [1.0] * 3, "c": [0.0, 1.0, 0.0]}
    given = {f"held_out/{name}": [Prediction(str(i), "Hm.", score, "v1") for i, score in enumerate(of)] for name, of in scores.items()}
    wrong, right = blind_sets({f"held_out/{one.name}": one for one in sets}, given)
    assert wrong.message == (
        "the seed model scores 0 on every question of held_out/a by the metric yes_no: the set cannot show what a candidate is worth; "
        "take another metric or easier questions"
    )
    assert (wrong.kind, wrong.count) == ("blind_set", 3)
    assert "was answered 'Hm.'; the reference is" in wrong.example
    assert "scores 1 on every question of held_out/b" in right.message
    assert "take harder questions" in right.message


def test_a_held_out_set_has_no_flags(polled: LlavaJsonSet) -> None:
    (one,) = build_held_out({"test": HeldOutSet(data=polled)}, seed=1)
    assert (one.seed_domain, one.yes_no) == (False, False)
