"""Teacher data from end to end: the exact program, a real server that misbehaves, a small model, kills, and the loop that reads it."""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from actors.chat.apis import ApiName
from actors.chat.endpoint_options import EndpointOptions
from loop.cli import app
from loop.config.run_config import parse_config
from loop.errors import TeachingStoppedError, UserError
from loop.setup.assembly import build_labelled
from loop.sources.drawings.source import DrawingsImages
from loop.sources.llava_json import LlavaJsonData
from loop.sources.shapes.questions import is_correct
from loop.sources.shapes.scene import scene_of
from loop.sources.shapes.source import ShapesImages
from loop.teaching.teach import TeachOptions, teach, world_images
from policies.generation.instructions import QuestionType
from tests.actors.chat.chat_server import Answer, ChatServer
from tests.loop.journals import await_documents, documents
from tests.paths import ROOT

QUIET = Console(quiet=True)
OUTPUTS = {
    "conversation": "Question: What is there?\nAnswer: There is a cat.\n===\nQuestion: Where is it?\nAnswer: It is on the mat.",
    "detail": "There is a cat on a mat in front of a door, and it looks at the garden behind it.",
    "complex": "Question: Why is it there?\n===\nAnswer: It likes the warmth of the mat, which lies in the light of the sun.",
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Annotations of twelve images."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(12)]
    captions = [{"image_id": i, "caption": f"A cat with the number {i}."} for i in range(12)]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 50, 50]} for i in range(12)]
    paths = tmp_path / "captions.json", tmp_path / "instances.json"
    paths[0].write_text(json.dumps({"annotations": captions}))
    paths[1].write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": boxes}))
    return paths


def options(out: Path, files: tuple[Path, Path], server: ChatServer, **more: Any) -> TeachOptions:
    fields = {name: more.pop(name) for name in list(more) if name in EndpointOptions.__dataclass_fields__}
    endpoint = EndpointOptions(**{"url": server.url, "model": "m", "first_backoff_s": 0.01, "max_attempts": 3, **fields})
    return TeachOptions(out, captions=files[0], instances=files[1], endpoint=endpoint, **more)


def kind_of(body: dict[str, Any]) -> str:
    system = body["messages"][0]["content"]
    return "conversation" if "Write a conversation" in system else "detail" if "Write nothing but" in system else "complex"


def number_of(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].split("the number ")[1].split(".")[0])


def good(body: dict[str, Any], number: int) -> Answer:
    return Answer(OUTPUTS[kind_of(body)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the exact program


def test_what_the_exact_program_writes_is_true_and_is_the_seed_data_of_a_loop(tmp_path: Path) -> None:
    out = tmp_path / "taught"
    summary = teach(TeachOptions(out, world=ShapesImages(3, 0.0, 0.2, 20), teacher="exact", write_images=True), QUIET)
    assert (summary["num_records"], summary["rejected"]) == (60, {})
    assert summary["records_by_type"] == {"complex": 20, "conversation": 20, "detail": 20}
    found = {"kind": "llava_json", "path": str(out / "data.json"), "images": str(out / "images")}
    recipe = yaml.safe_load((ROOT / "loop" / "recipes" / "shapes.yaml").read_text())
    data = build_labelled(parse_config({**recipe, "seed_data": {"data": found}}).seed_data.data)
    assert isinstance(data, LlavaJsonData)
    assert len(data.records()) == 60
    assert {len(record.turns) for record in data.records() if record.question_type is QuestionType.CONVERSATION} == {3}
    for record in data.records():
        scene = scene_of(record.image_id.removesuffix(".png"))
        assert data.open(record.image_id).size == (48, 48)
        assert all(is_correct(scene, question, answer) for question, answer in record.turns)
    assert len(data.training_samples(200, 0)) == 200


def test_the_exact_program_writes_about_drawings_too(tmp_path: Path) -> None:
    world = world_images("drawings:styles=noto,num_images=5", None, 3, 0.0, 0.0)
    assert isinstance(world, DrawingsImages)
    summary = teach(TeachOptions(tmp_path / "taught", world=world, teacher="exact", write_images=True), QUIET)
    assert (summary["num_records"], summary["rejected"]) == (15, {})
    for record in json.loads((tmp_path / "taught" / "data.json").read_text()):
        assert (tmp_path / "taught" / "images" / record["image"]).is_file()
        said = [turn["value"].removeprefix("<image>").strip() for turn in record["conversations"]]
        for question, answer in zip(said[::2], said[1::2], strict=True):
            assert world.is_correct(record["image"].removesuffix(".png"), question, answer)


def test_the_same_command_gives_the_same_bytes_and_more_images_only_add(tmp_path: Path) -> None:
    def run(folder: str, num_images: int) -> bytes:
        teach(TeachOptions(tmp_path / folder, world=ShapesImages(3, 0.0, 0.2, num_images), teacher="exact"), QUIET)
        return (tmp_path / folder / "data.json").read_bytes()

    whole = run("a", 12)
    assert run("b", 5) != whole
    assert run("b", 12) == whole == run("a", 12)


# ---- a server that misbehaves


def test_every_kind_of_answer_ends_up_where_it_belongs(tmp_path: Path, files: tuple[Path, Path]) -> None:
    odd = {
        0: Answer("qwx blorp zint fleem grok vint splat dorp wug flib"), 1: Answer("Question: What is there?"),
        2: Answer("Question: ¿Qué hay en la alfombra?\nAnswer: Hay un gato negro en la alfombra, que mira la puerta."),
        3: Answer(None), 4: Answer("Question: What do the captions say?\nAnswer: They say that it is a cat."),
        5: Answer(OUTPUTS["conversation"] + "\n===\nQuestion: And"),
    }  # fmt: skip
    trouble = [
        Answer(status=429, headers={"Retry-After": "0.2"}), Answer(status=500), Answer(body=b"{broken"), Answer(cut=True),
        Answer(delay_s=3.0),
    ]  # fmt: skip
    tried: Counter[int] = Counter()

    def answer(body: dict[str, Any], number: int) -> Answer:
        image = number_of(body)
        tried[image] += 1
        if 6 <= image < 6 + len(trouble) and tried[image] == 1:
            return trouble[image - 6]
        return odd.get(image, Answer(OUTPUTS["conversation"]))

    with ChatServer(answer) as server:
        types = (QuestionType.CONVERSATION,)
        asked = options(tmp_path / "out", files, server, types=types, timeout_s=1.0, usd_per_million_input=1.0)
        summary = teach(asked, QUIET)
    assert (summary["num_finished"], summary["num_records"], summary["num_unanswered"]) == (12, 7, 0)
    assert summary["rejected"] == {"nonsense": 1, "half_block": 2, "other_language": 1, "empty": 1, "mentions_source": 1}
    assert sum(tried.values()) == len(server.requests) == summary["usage"]["num_requests"] == 12 + len(trouble)
    assert summary["usage"]["usd"] > 170e-6
    rejected = {line["image_id"]: line["reason"] for line in lines(tmp_path / "out" / "rejected.jsonl")}
    assert rejected == {"0": "nonsense", "1": "half_block", "2": "other_language", "3": "empty", "4": "mentions_source", "5": "half_block"}
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [(one["image"], one["type"], len(one["conversations"])) for one in data[-1:]] == [("9.png", "conversation", 4)]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_429_for_ever_is_a_named_error_and_the_same_command_goes_on_where_it_ended(tmp_path: Path, files: tuple[Path, Path]) -> None:
    def busy_later(body: dict[str, Any], number: int) -> Answer:
        return good(body, number) if number < 10 else Answer(status=429)

    with (
        ChatServer(busy_later) as server,
        pytest.raises(TeachingStoppedError, match=r"RateLimitedError.*the same command") as caught,
    ):
        teach(options(tmp_path / "out", files, server, max_concurrency=2), QUIET)
    assert caught.value.exit_code == 1
    assert len(json.loads((tmp_path / "out" / "data.json").read_text())) == 10
    with ChatServer(good) as again:
        summary = teach(options(tmp_path / "out", files, again), QUIET)
    answered = {(kind_of(body), number_of(body)) for body in server.requests[:10]}
    asked_again = [(kind_of(body), number_of(body)) for body in again.requests]
    assert len(asked_again) == len(set(asked_again)) == 26
    assert not answered & set(asked_again)
    assert summary["num_records"] == 36


def test_a_request_that_is_refused_is_counted_and_asked_again_by_the_next_command(tmp_path: Path, files: tuple[Path, Path]) -> None:
    def refuses(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=400, body=b"too long") if number_of(body) == 4 else good(body, number)

    with ChatServer(refuses) as server:
        assert teach(options(tmp_path / "out", files, server), QUIET)["num_unanswered"] == 3
    with ChatServer(good) as server:
        summary = teach(options(tmp_path / "out", files, server), QUIET)
    assert (len(server.requests), summary["num_unanswered"], summary["num_finished"]) == (3, 0, 36)


def test_the_spending_cap_ends_it_cleanly_and_counts_over_commands(tmp_path: Path, files: tuple[Path, Path]) -> None:
    def costly(body: dict[str, Any], number: int) -> Answer:
        return Answer(OUTPUTS[kind_of(body)], usage=(0, 1000))

    prices = {"usd_per_million_output": 1000.0, "max_tokens": 1000}
    with ChatServer(costly) as server:
        summary = teach(options(tmp_path / "out", files, server, max_usd=10.5, **prices), QUIET)
        assert summary["num_records"] == len(server.requests) == 10
        assert summary["usage"]["usd"] == pytest.approx(10.0)
        assert summary["stopped"].startswith("spent 10.0000 USD of max_usd = 10.5")
        assert len(json.loads((tmp_path / "out" / "data.json").read_text())) == 10
        summary = teach(options(tmp_path / "out", files, server, max_usd=12.5, **prices), QUIET)
        assert summary["num_records"] == len(server.requests) == 12


# ---- kills


def test_a_killed_command_goes_on_and_no_task_is_asked_twice(tmp_path: Path, files: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "loop", "teach", "--out", str(out), "--captions", str(files[0]), "--instances", str(files[1]), "--model", "m",
        "--concurrency", "2",
    ]  # fmt: skip

    def slowly(body: dict[str, Any], number: int) -> Answer:
        return replace(good(body, number), delay_s=0.05 if number < 8 else 30.0)

    with ChatServer(slowly) as server:
        child = subprocess.Popen(
            [*command, "--endpoint", server.url], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
        )
        await_documents(out / "journal.sqlite", 8, child)
        child.send_signal(signal.SIGKILL)
        child.wait()
    finished = documents(out / "journal.sqlite")
    assert len(finished) == 8
    with ChatServer(good) as again:
        summary = teach(options(out, files, again), QUIET)
    asked = [f"{number_of(body)}/{kind_of(body)}" for body in again.requests]
    assert len(asked) == len(set(asked)) == 28
    assert not finished & set(asked)
    assert (summary["num_finished"], summary["num_records"]) == (36, 36)


@pytest.fixture
def _heeds_interrupts() -> Iterator[None]:
    """A shell has what it runs in the background ignore SIGINT, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_interrupts")
def test_ctrl_c_keeps_and_publishes_what_is_finished(tmp_path: Path, files: tuple[Path, Path]) -> None:
    def interrupts(body: dict[str, Any], number: int) -> Answer:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return replace(good(body, number), delay_s=0.0 if number < 5 else 5.0)

    with ChatServer(interrupts) as server, pytest.raises(TeachingStoppedError, match="interrupted") as caught:
        teach(options(tmp_path / "out", files, server, max_concurrency=1), QUIET)
    assert caught.value.exit_code == 130
    assert len(json.loads((tmp_path / "out" / "data.json").read_text())) in (4, 5)  # the last one may be on its way


def exact(out: Path, seed: int = 3) -> Any:
    return teach(TeachOptions(out, seed=seed, world=ShapesImages(3, 0.0, 0.2, 4), teacher="exact"), QUIET)


def test_a_journal_of_other_texts_and_foreign_files_are_refused(tmp_path: Path) -> None:
    assert exact(tmp_path / "out") == {**exact(tmp_path / "out"), "seconds": ANY}
    with pytest.raises(UserError, match="holds answers made with seed 3, but now it is 4"):
        exact(tmp_path / "out", seed=4)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.json").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files and no journal.sqlite"):
        exact(tmp_path / "other")
    assert (tmp_path / "other" / "data.json").read_text() == "mine"
    (tmp_path / "other" / "journal.jsonl").touch()
    with pytest.raises(UserError, match=r"journal.jsonl was written by an earlier vigc-loop"):
        exact(tmp_path / "other")


def test_a_full_disk_is_named_and_the_same_command_goes_on(tmp_path: Path, files: tuple[Path, Path]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills(body: dict[str, Any], number: int) -> Answer:
        if number == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "out" / "journal.sqlite").stat().st_size, before[1]))
        return good(body, number)

    try:
        with ChatServer(fills) as server, pytest.raises(TeachingStoppedError, match=r"cannot write .*journal.sqlite.*the same command"):
            teach(options(tmp_path / "out", files, server, max_concurrency=1), QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    num_kept = len(documents(tmp_path / "out" / "journal.sqlite"))
    with ChatServer(good) as server:
        assert teach(options(tmp_path / "out", files, server), QUIET)["num_finished"] == 36
    assert 5 <= num_kept == 36 - len(server.requests)


# ---- a teacher that sees the images


def photos(folder: Path, num: int = 3) -> Path:
    folder.mkdir()
    for i in range(num):
        noise = np.random.default_rng(i).integers(0, 255, (90, 60 * (i + 1), 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def shown(body: dict[str, Any]) -> Image.Image:
    """The image of a request, whichever protocol it has."""
    [part, text] = body["messages"][-1]["content"]
    assert text["type"] == "text"
    encoded = part["source"]["data"] if "source" in part else part["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))


def sighted(out: Path, images: Path, server: ChatServer, api: ApiName = "openai", **more: Any) -> dict[str, Any]:
    endpoint = EndpointOptions(server.url, "m", api, first_backoff_s=0.01, max_attempts=3, usd_per_million_input=1.0)
    return teach(TeachOptions(out, images=images, endpoint=endpoint, sees_images=True, **{"image_side": 100, **more}), QUIET)


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_a_teacher_that_sees_is_shown_each_image_and_writes_seed_data(tmp_path: Path, api: ApiName) -> None:
    def sees(body: dict[str, Any], number: int) -> Answer:
        system = body["system"] if api == "anthropic" else body["messages"][0]["content"]
        assert "You are shown one photograph" in system
        kind = kind_of({"messages": [{"content": system}]})
        return Answer(OUTPUTS[kind], reasoning="It is a cat.", usage=(1200, 50))

    folder = photos(tmp_path / "photos")
    (folder / "broken.jpg").write_bytes(b"no image")
    with ChatServer(sees) as server:
        summary = sighted(tmp_path / "out", folder, server, api)
    assert (summary["num_images"], summary["num_records"], summary["images_set_aside"]) == (3, 9, {"unreadable": 1})
    assert (summary["usage"]["num_input_tokens"], summary["usage"]["usd"]) == (9 * 1200, pytest.approx(9 * 0.0012))
    assert summary["num_images_shown"] == 3
    assert {(image.format, image.size) for image in map(shown, server.requests)} == {
        ("JPEG", (60, 90)), ("JPEG", (100, 75)), ("JPEG", (100, 50)),
    }  # fmt: skip
    data = LlavaJsonData(tmp_path / "out" / "data.json", folder)
    assert {record.image_id for record in data.records()} == {"0.png", "1.png", "2.png"}
    assert {record.question_type for record in data.records()} == {*QuestionType}


def test_an_answer_belongs_to_the_image_that_was_shown(tmp_path: Path) -> None:
    def sees(body: dict[str, Any], number: int) -> Answer:
        return Answer(OUTPUTS[kind_of(body)])

    folder = photos(tmp_path / "photos")
    with ChatServer(sees) as server:
        sighted(tmp_path / "out", folder, server)
        assert len(server.requests) == 9
        Image.new("RGB", (40, 40), "red").save(folder / "1.png")
        assert sighted(tmp_path / "out", folder, server)["num_finished"] == 9
        assert [shown(body).size for body in server.requests[9:]] == [(40, 40)] * 3
        with pytest.raises(UserError, match="holds answers made with image_side 100, but now it is 64"):
            sighted(tmp_path / "out", folder, server, image_side=64)


def test_an_answer_cut_off_within_its_reasoning_and_a_refusal_are_reasons_of_their_own(tmp_path: Path) -> None:
    answers = [
        Answer(None, reasoning="Is it a", finish_reason="length"), Answer("<think>Is it a", finish_reason="length"),
        Answer("", finish_reason="content_filter"),
    ]  # fmt: skip
    with ChatServer(lambda body, number: answers[number]) as server:
        summary = sighted(tmp_path / "out", photos(tmp_path / "photos"), server, types=(QuestionType.DETAIL,))
    assert (summary["num_records"], summary["rejected"]) == (0, {"unfinished_reasoning": 2, "refusal": 1})


# ---- the command line


SEES = ["--endpoint", "http://h/v1", "--model", "m", "--teacher-sees", "images"]


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--teacher", "exact"], "no annotations|--shapes NUM_IMAGES"), (["--shapes", "5"], "expected one teacher"),
    (["--shapes", "5", "--teacher", "exact", "--endpoint", "http://h/v1", "--model", "m"], "expected one teacher"),
    (["--shapes", "0", "--teacher", "exact"], "--shapes of 1 or more"),
    (["--shapes", "5", "--world", "shapes:num_images=5", "--teacher", "exact"], "--shapes and --world both name images"),
    (["--world", "photos", "--teacher", "exact"], "--world is 'photos'; expected, for example, drawings:styles=noto"),
    (["--world", "drawings:styles=blob,num_images=5", "--teacher", "exact"], "there is no house 'blob'"),
    (["--shapes", "5", "--teacher", "exact", "--types", "x"], "--types is 'x'"),
    (["--shapes", "5", "--endpoint", "h", "--model", "m"], "expected one such as http"), (["--shapes", "5", "--model", "m"], "--endpoint"),
    (["--shapes", "5", "--endpoint", "http://h/v1", "--model", "m", "--extra-body", "{"], "--extra-body is not JSON"),
    (["--shapes", "5", "--endpoint", "http://h/v1", "--model", "m", "--max-usd", "5"], "without prices"),
    (["--shapes", "5", "--endpoint", "http://h/v1", "--model", "m", "--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
    (["--shapes", "5", "--teacher", "/no/such/model"], "does not exist"),
    (["--shapes", "5", "--teacher", "/a/model", "--teacher-sees", "images"], "/a/model reads text only"),
    (["--shapes", "5", "--teacher", "exact", "--image-side", "64"], "--image-side and --image-quality are for --teacher-sees images"),
    ([*SEES], "give --images FOLDER or --shapes"), ([*SEES, "--captions", "c.json"], "--captions and --instances are for a teacher that"),
    ([*SEES, "--shapes", "5", "--image-side", "9000"], "expected an --image-side from 32 to 2048"),
    ([*SEES, "--shapes", "5", "--api", "anthropic", "--temperature", "1.5"], "takes 0 to 1"),
])  # fmt: skip
def test_a_command_that_cannot_work_says_why(tmp_path: Path, arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["teach", "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, UserError)
    assert any(part in str(result.exception) for part in expected.split("|"))


def test_the_command_prints_its_summary(tmp_path: Path) -> None:
    arguments = ["teach", "--out", str(tmp_path / "out"), "--shapes", "4", "--teacher", "exact", "--types", "detail,complex"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "8 records with 8 questions about 4 images" in " ".join(result.output.split())
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["num_records"] == 8


def test_images_that_are_not_there_are_set_aside(tmp_path: Path, files: tuple[Path, Path]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with ChatServer(good) as server:
        with pytest.raises(UserError, match="none of the annotated images"):
            teach(options(tmp_path / "out", files, server, images=folder), QUIET)
        for i in (3, 5, 7):
            (folder / f"{i}.png").write_bytes(b"x")
        summary = teach(options(tmp_path / "out", files, server, images=folder, num_images=2), QUIET)
    assert (summary["num_images"], summary["images_set_aside"], summary["num_records"]) == (2, {"missing_file": 9}, 6)
