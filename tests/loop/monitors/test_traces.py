"""Records as traces of a real MLflow on a SQLite file, and the labels that people give them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import AssessmentSource, Expectation
from mlflow.tracing.client import TracingClient
from typer.testing import CliRunner

from loop.cli import app
from loop.errors import UserError
from loop.gallery.samples import RoundSamples, Sample
from loop.gallery.thumbnails import Picture
from loop.monitors.mirror.records import RunRecords
from loop.monitors.mirror.review_queue import RIGHT_ANSWER, put_up
from loop.monitors.mirror.steps import Step, record_steps
from loop.monitors.mirror.traces import RECORD_KEY, TRACES_TAG, TraceLog, can_be_judged
from loop.monitors.mirroring import mirror_of
from loop.review.labels import read_review
from loop.setup.routing import record_images
from loop.sources.llava_json import LlavaJsonData
from loop.store.run_store import Store
from policies.filtering.attribution import judges
from policies.records import Reason
from tests.loop.gallery.made_run import commit_of, config_of, records, write_run
from tests.loop.monitors.tracked import NUM, Tracked, nothing, source_of, tracked_run

CHAIN = judges(["parsable", "agreement", "confidence"])


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Tracked:
    return tracked_run(tmp_path_factory.mktemp("tracked"), empty_database)


def by_name(step: Step) -> dict[str, Step]:
    return {inner.name: inner for _, inner in step.walk()}


def test_a_trace_has_the_passes_the_looks_and_the_filters() -> None:
    record = replace(
        records(1, 3)[1], blank_logprob=-2.0, view_description="A scene.", refuted_premises=(), premise_answers=("A ring? Yes.",)
    )
    found = by_name(record_steps(Sample(record, Picture("data:image/webp;base64,AA"), []), CHAIN))
    expected = ["premises", "sentence 1", "sentence 2", "blank image", "view 1", "view 2", "describe"]
    filters = [f"filter: {name}" for name in ("parsable", "agreement", "confidence", "deduplication")]
    assert list(found) == ["record", "generate", "correct", *expected, *filters]
    assert found["sentence 2"].attributes["gain_nats_per_token"] == -0.1
    assert found["filter: confidence"].outputs == {"verdict": "kept"}
    picture, question = found["record"].inputs["messages"][0]["content"]
    assert picture == {"type": "image_url", "image_url": {"url": "data:image/webp;base64,AA"}}
    assert question["text"] == record.question
    rejected = by_name(record_steps(Sample(records(1, 3)[0].rejected(Reason.ANSWERS_DISAGREE), Picture(problem="gone"), []), CHAIN))
    assert [name for name in rejected if name.startswith("filter")] == filters[:2]
    assert rejected["filter: agreement"].outputs == {"verdict": "rejected", "reasons": ["answers_disagree"]}
    assert rejected["record"].inputs["messages"][0]["content"][0]["text"].endswith("(no picture: gone)")


def test_what_nobody_can_judge_is_not_asked() -> None:
    record, picture = records(1, 1)[0], Picture("data:image/webp;base64,AA")
    assert can_be_judged(Sample(record, picture, []))
    assert not can_be_judged(Sample(record, Picture(problem="it was moved"), []))
    assert not can_be_judged(Sample(replace(record, question=""), picture, []))


def test_a_round_without_records_says_so(tracked: Tracked) -> None:
    log = TraceLog(TracingClient(tracked.mirror.tracking_uri), tracked.experiment_id, "made", "small")
    assert log.write("none", commit_of(tracked.store, 3, []), RoundSamples([], 0)) == "the round has no records"
    assert log.write("none", commit_of(tracked.store, 3, []), RoundSamples([], 0, "a part is damaged")) == "a part is damaged"


def test_every_round_is_there_with_pictures_verdicts_and_the_truth(tracked: Tracked) -> None:
    found = {one.info.trace_metadata[RECORD_KEY]: one for one in tracked.traces()}
    assert len(found) == 2 * NUM
    trace = next(one for name, one in found.items() if name.startswith("r1-s00000") and one.info.tags["verdict"] == "rejected")
    root = next(span for span in trace.data.spans if span.parent_id is None)
    assert root.inputs["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/webp;base64,")
    assert {"generate", "correct", "sentence 1", "view 1", "filter: parsable"} <= {span.name for span in trace.data.spans}
    values = {one.name: one.value for one in trace.info.assessments}
    assert values["verdict"] == "rejected"
    assert values["agreement"] == 0.5
    assert values["truth"] == "right"
    assert 0 < values["confidence"] < 1
    rounds = {run.data.tags.get("vigc.round"): run.data.tags.get(TRACES_TAG) for run in tracked.client.search_runs([tracked.experiment_id])}
    assert rounds == {None: None, "0": None, "1": f"{NUM} of 62 records", "2": f"{NUM} of 60 records"}
    unusual = [one.info.trace_id for name, one in found.items() if name.startswith("r1-s00001")]
    assert len(unusual) == 2, "the rarest reasons are shown"
    assert set(tracked.in_queue()) == {one.info.trace_id for one in found.values()} - set(unusual)


def test_a_replay_adds_nothing_and_keeps_what_people_said(tracked: Tracked) -> None:
    trace_id = next(iter(tracked.in_queue()))
    tracked.say(trace_id, "wrong", "bob")

    def seen() -> list[Any]:
        assessments = {one.info.trace_id: sorted(str(made.assessment_id) for made in one.info.assessments) for one in tracked.traces()}
        spans = sum(len(one.data.spans) for one in tracked.traces())
        return [assessments, spans, tracked.in_queue()]

    before = seen()
    for run in tracked.client.search_runs([tracked.experiment_id], "tags.`vigc.round` = '1'"):
        tracked.client.delete_tag(run.info.run_id, "vigc.mirrored")
    assert tracked.mirror.log_commits(
        tracked.store.commits(), nothing, lambda _: None, traces=RunRecords(source_of(tracked.store)).traced
    ) == [1]
    put_up(TracingClient(tracked.mirror.tracking_uri), tracked.experiment_id, "small (made)", [trace_id])
    assert seen() == before
    assert "bob" in {made.source.source_id for made in tracked.client.get_trace(trace_id).info.assessments}


def test_labels_come_back_as_precision_recall_and_data(tracked: Tracked, tmp_path: Path) -> None:
    shown = sorted(tracked.in_queue())
    for number, trace_id in enumerate(shown[1:]):
        tracked.say(trace_id, ("right", "Wrong", "bad_question", "perhaps")[number % 4])
    client = TracingClient(tracked.mirror.tracking_uri)
    answer = Expectation(name=RIGHT_ANSWER, value="A cube.", source=AssessmentSource("HUMAN", "ada"))
    client.log_assessment(shown[2], answer)
    found = CliRunner().invoke(app, ["review", tracked.store.uri, "--json", "--out", str(tmp_path / "labelled")])
    assert found.exit_code == 0, found.output
    document = json.loads(next(line for line in found.stdout.splitlines() if line.startswith("{")))
    right = sum(one["label"] == "right" for one in document["records"])
    assert document["num_records"] == 2 * NUM
    assert len(document["unknown_labels"]) == sum(number % 4 == 3 for number in range(len(shown) - 1))
    assert "has the label 'perhaps' by ada; expected right, wrong or bad question" in document["unknown_labels"][0]
    assert [one["name"] for one in document["agreement"]] == ["verdict", "parsable", "package.module:Own", "deduplication"]
    assert 0 <= document["agreement"][0]["precision"]["low"] <= document["agreement"][0]["precision"]["value"] <= 1
    assert (document["written"]["right"], document["written"]["corrected"]) == (right, 1)
    data = LlavaJsonData(tmp_path / "labelled" / "data.json", tmp_path / "labelled" / "images")
    questions = data.questions(right + 1, 0)
    assert "A cube." in {one.answer for one in questions}
    table = CliRunner().invoke(app, ["review", tracked.store.uri])
    assert "precision" in table.output
    again = CliRunner().invoke(app, ["review", tracked.store.uri, "--out", str(tmp_path / "labelled")])
    assert "exists, and is never overwritten" in str(again.exception)


def test_an_image_that_was_moved_costs_its_record_and_no_other(tracked: Tracked, tmp_path: Path) -> None:
    from loop.review.labelled_data import write_labelled

    labelled = [replace(one, label="right") for one in read_review(tracked.store).records if one.record_id.startswith("r1-s00000")]
    gone = [replace(one, record_id="r1-s00001-0000", label="right") for one in labelled[:1]]
    written = write_labelled(tracked.store, [*labelled, *gone], record_images(config_of()), tmp_path / "out")
    assert written.counts == {"right": len(labelled), "without_image": 1}
    assert len(written.bad_images) == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda store, patch: None, "has nothing of"),
        (
            lambda store, patch: mirror_of(config_of(), store).open_round(1, 0),
            "has no trace of the run",
        ),
        (lambda store, patch: patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"), "MLflow does not answer"),
    ],
)
def test_what_cannot_be_reviewed_is_one_line(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Store, pytest.MonkeyPatch], Any], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    store = write_run(tmp_path / "run", config_of(), [records(1, 6)])
    prepare(store, monkeypatch)
    with pytest.raises(UserError, match=message) as raised:
        read_review(store)
    assert "\n" not in str(raised.value)


def test_a_run_that_is_not_tracked_cannot_be_reviewed(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run", config_of(tracking={"enabled": False}), [records(1, 6)])
    with pytest.raises(UserError, match="is not mirrored to MLflow"):
        read_review(store)
