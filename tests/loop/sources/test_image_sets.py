"""Every kind of image set: what its ids are, that each opens the right picture anywhere, and what is said of sets that are wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from actors.filter import filter_shard
from actors.generator import Generator, GeneratorOptions
from actors.images import FileSource
from actors.shards import Shard, ShardImages
from loop.cli import app
from loop.run.stages.records import counts_of
from loop.sources.folder import ImageFolder
from loop.sources.reading.places import Place
from policies.counts import RecordCounts
from policies.filtering.chain import FilterChain
from policies.filtering.filters import Parsable
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, QuestionType
from policies.records import Reason, from_table, to_table
from policies.training.selection import score_of
from tests.actors.pipeline.scripted_engine import ScriptedEngine
from tests.loop.sources.image_sets import KINDS, built, noise, number_of, png, reason, refusal, write_set
from tests.paths import DATA, ROOT

needs_photos = pytest.mark.skipif(not (DATA / "photos").is_dir(), reason=f"the real photos are not in {DATA}")


# ---- every kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_opens_its_picture_in_any_order(tmp_path: Path, kind: str) -> None:
    source = built(**write_set(kind, tmp_path / "set", [png(number) for number in range(300)]))
    ids = source.image_ids()
    assert len(set(ids)) == 300
    assert all(image_id.isprintable() for image_id in ids)
    assert [number_of(source.open(image_id)) for image_id in ids] == list(range(300))
    for number in (299, 0, 151, 150, 149, 17, 18, 3):
        assert number_of(source.open(ids[number])) == number


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_bytes_of_its_images_for_an_export(tmp_path: Path, kind: str) -> None:
    source = built(**write_set(kind, tmp_path / "set", [png(number) for number in range(3)]))
    assert isinstance(source, FileSource)
    assert [source.read_file(image_id)[1] for image_id in source.image_ids()] == [png(number) for number in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_takes_the_first_images(tmp_path: Path, kind: str) -> None:
    spec = write_set(kind, tmp_path / "set", [png(number) for number in range(30)])
    everything = built(**spec).image_ids()
    for limit in (1, 15, 16, 31):
        assert built(**spec, num_images=limit).image_ids() == everything[:limit]


_OPENS = """
import pickle, sys
source = pickle.loads(sys.stdin.buffer.read())
print(source.image_ids()[7], *source.open(source.image_ids()[7]).getpixel((0, 0)))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_pickles_small_and_opens_the_same_in_another_process(tmp_path: Path, kind: str) -> None:
    source = built(**write_set(kind, tmp_path / "set", [png(number) for number in range(400)]))
    source.open(source.image_ids()[0])
    data = pickle.dumps(source)
    assert len(data) < 1500
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", _OPENS], input=data, capture_output=True, check=True, env=environment)
    assert child.stdout.decode().rsplit(maxsplit=3) == [source.image_ids()[7], "7", "0", "7"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_which_one_image_in_a_hundred_is_broken_runs_through(tmp_path: Path, kind: str) -> None:
    pictures = [png(number) for number in range(300)]
    for number, data in ((0, pictures[0][:40]), (150, b"<html>"), (299, b"")):
        pictures[number] = data
    source = built(**write_set(kind, tmp_path / "set", pictures))
    instruction = CANONICAL_INSTRUCTIONS[QuestionType.CONVERSATION]
    tasks = tuple(GenerationTask(image_id, QuestionType.CONVERSATION, instruction) for image_id in source.image_ids())
    shard = Shard(1, 0, 5, tasks, pickle.loads(pickle.dumps(source)))
    engine = ScriptedEngine(lambda request: "Question: What is it? Answer: A ring.")
    generated = Generator(engine, GeneratorOptions(), ShardImages(shard.source)).generate(shard)
    written: list[pa.Table] = []
    filter_shard(FilterChain([Parsable()]), score_of, None, lambda *part: written.append(part[2]), shard, {}, to_table(generated))
    records = from_table(written[0])
    bad = [index for index, record in enumerate(records) if record.reasons == (Reason.UNREADABLE_IMAGE,)]
    assert bad == [0, 150, 299]
    counts = counts_of(RecordCounts.of(records), 0)
    assert (counts["set_aside_images"], counts["accepted"]) == (3, 297)


@pytest.mark.parametrize("kind", KINDS)
def test_several_threads_open_images_of_a_set_at_the_same_time(tmp_path: Path, kind: str) -> None:
    source = built(**write_set(kind, tmp_path / "set", [png(number) for number in range(80)]))
    wanted = [number for start in range(8) for number in range(start, 80, 8)] * 2
    ids = source.image_ids()
    with ThreadPoolExecutor(8) as pool:
        assert [number_of(image) for image in pool.map(source.open, [ids[number] for number in wanted])] == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_refused_where_not_one_of_its_first_images_can_be_read(tmp_path: Path, kind: str) -> None:
    text = refusal(**write_set(kind, tmp_path / "set", [b"<html>"] * 30))
    assert text.startswith(f"none of the first 20 images of {tmp_path}/set")
    assert "not a readable JPEG/PNG/WEBP image" in text
    assert built(**write_set(kind, tmp_path / "other", [b"<html>"] * 19 + [png(1)])).image_ids()


def test_the_reason_of_a_bad_image_is_kept_on_its_record_without_paths_of_the_machine(tmp_path: Path) -> None:
    spec = write_set("folder", tmp_path / "set", [png(0), b"<html>", png(2)])
    source = built(**spec)
    (tmp_path / "set" / "000002.png").unlink()
    tasks = tuple(GenerationTask(image_id, QuestionType.DETAIL, "Ask.") for image_id in source.image_ids())
    engine = ScriptedEngine(lambda request: "Question: What is it? Answer: A ring.")
    records = Generator(engine, GeneratorOptions(), ShardImages(source)).generate(Shard(1, 0, 5, tasks, source))
    details = [record.reason_detail for record in from_table(to_table(records))]
    assert details[0] == ""
    assert details[1].startswith("000001.png: not a readable JPEG/PNG/WEBP image")
    assert details[2] == "000002.png: does not exist"


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_a_set_does_not_have_is_set_aside(tmp_path: Path, kind: str) -> None:
    source = built(**write_set(kind, tmp_path / "set", [png(number) for number in range(4)]))
    (tmp_path / "secret.png").write_bytes(png(1))
    first = source.image_ids()[0]
    for image_id in (f"{first}x", f"../{first}", "../secret.png", str(tmp_path / "secret.png"), "", "nul\0", "a.parquet/99", "\x1b[31m"):
        reason(source, image_id)
    assert number_of(source.open(first)) == 0


_GROWTH = """
import json, sys
from pydantic import TypeAdapter
from loop.setup.assembly import build_images
from loop.config.sets import ImageSet

def held():
    status = open('/proc/self/status').read()
    return 1024 * int(status.partition('RssAnon:')[2].split()[0])

for small, large in json.load(sys.stdin):
    levels = []
    for spec in (small, large):
        source, most = build_images(TypeAdapter(ImageSet).validate_python(spec)), 0
        for index, image_id in enumerate(source.image_ids()):
            source.open(image_id)
            most = max(most, held()) if index % 20 == 0 else most
        levels.append(most)
        del source
    print(levels[1] - levels[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process as Linux tells it")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    pictures = [noise(number) for number in range(300)] * 10
    num_bytes = sum(map(len, pictures))
    assert num_bytes > 30_000_000
    specs = [(write_set(kind, tmp_path / f"{kind}-small", pictures[:300]), write_set(kind, tmp_path / kind, pictures)) for kind in KINDS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", _GROWTH], input=json.dumps(specs).encode(), capture_output=True, check=True, env=environment
    )
    growth = dict(zip(KINDS, map(int, child.stdout.split()), strict=True))
    assert max(growth.values()) < num_bytes / 4, growth


def test_the_reference_of_a_config_describes_every_kind_of_set() -> None:
    printed = CliRunner().invoke(app, ["config"], env={"COLUMNS": "200"}).stdout
    for kind in KINDS:
        assert f"an image set of kind: {kind}" in printed
    for kind in ("llava_json", "vigc_json", "messages"):
        assert f"a labelled set of kind: {kind}" in printed
    assert "num_name_parts" in printed
    assert "an id is SHARD/MEMBER" in printed


# ---- folders


def test_a_folder_behind_a_uri_is_a_folder(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number, name in enumerate(("b.png", "sub/a.JPG", ".hidden/x.png", "note.txt")):
        memory.pipe(f"/photos/{name}", png(number))
    memory.pipe("/secret.png", png(9))
    for uri in ("memory://photos", "fsspec+memory:///photos"):
        source = built(kind="folder", path=uri)
        assert source.image_ids() == ["b.png", "sub/a.JPG"]
        assert [number_of(source.open(image_id)) for image_id in source.image_ids()] == [0, 1]
        assert pickle.loads(pickle.dumps(source)).image_ids() == source.image_ids()
        assert "is outside the image folder" in reason(source, "../secret.png")
        assert "cannot be read from memory" in reason(source, "gone.png").replace("fsspec+", "")
    assert "does not exist" in refusal(kind="folder", path="memory://nowhere")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x.png").write_bytes(png(5))
    assert number_of(ImageFolder(f"file://{tmp_path}/a%20b").open("x.png")) == 5


def test_a_uri_that_nothing_knows_is_named() -> None:
    assert "nonsense://x cannot be found" in refusal(kind="folder", path="nonsense://x")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hf_dataset"])
def test_every_kind_but_one_is_read_behind_a_uri(tmp_path: Path, kind: str) -> None:
    spec = write_set(kind, tmp_path / "set", [png(number) for number in range(20)])
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), f"/{tmp_path.name}/", recursive=True)
    spec = {name: value.replace(f"{tmp_path}", f"memory://{tmp_path.name}") if name != "kind" else value for name, value in spec.items()}
    source = built(**spec)
    assert [number_of(source.open(image_id)) for image_id in source.image_ids()] == list(range(20))


def test_place_of_a_uri_with_a_query_keeps_it_for_its_parent() -> None:
    assert Place("s3://bucket/a/b.parquet?region=x").parent == Place("s3://bucket/a?region=x")
    assert Place("/data/b.parquet").parent == Place("/data")


# ---- coco


def coco(folder: Path, *images: Any, **more: Any) -> dict[str, Any]:
    (folder / "images" / "patch0").mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "patch0/b.png"):
        (folder / "images" / name).write_bytes(png(len(name)))
    (folder / "coco.json").write_text(json.dumps({"annotations": [{"id": 1, "images": [3]}], "images": list(images)}))
    return {"kind": "coco", "path": str(folder / "coco.json"), "images": str(folder / "images"), **more}


A, B = {"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "patch0/b.png"}


def test_coco_ids_are_file_names_in_the_order_of_the_file(tmp_path: Path) -> None:
    source = built(**coco(tmp_path, {**B, "tags": [{"id": 5, "file_name": "no"}]}, A))
    assert source.image_ids() == ["patch0/b.png", "a.png"]
    assert number_of(source.open("a.png")) == 5


def test_objects365_names_lose_the_folders_that_its_archive_does_not_have(tmp_path: Path) -> None:
    source = built(**coco(tmp_path, {"id": 8, "file_name": "images/v1/patch0/b.png"}, num_name_parts=2))
    assert source.image_ids() == ["patch0/b.png"]
    assert number_of(source.open("patch0/b.png")) == 12


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([A, B, {**A, "id": 9}], "image 2 of {}/coco.json (id 9) has file_name a.png, and so has the image with id 7"),
        ([A, {"id": 3}], "image 1 of {}/coco.json (id 3) has file_name None"),
        ([A, "a.png"], "image 1 of {}/coco.json (id ) has file_name None"),
        ([A, [B]], "image 1 of {}/coco.json (id ) has file_name None"),
        ([A, {"file_name": "../a.png"}], "expected a printable path below the image folder"),
        ([A, {"file_name": "/etc/passwd"}], "expected a printable path below the image folder"),
        ([A, {"file_name": "\x1b[2J.png"}], "expected a printable path below the image folder"),
        ([], "names no images; expected an object with a list `images`"),
        ([{"file_name": f"{number}.png"} for number in range(30)], "none of the first 20 images of {}/coco.json can be read (0.png: does"),
    ],
)
def test_a_wrong_coco_file_is_named(tmp_path: Path, images: list[Any], text: str) -> None:
    assert text.format(tmp_path) in refusal(**coco(tmp_path, *images))


def test_what_is_no_coco_file_is_named(tmp_path: Path) -> None:
    spec = coco(tmp_path, A)
    for content in (b"", b"{", b"[1, 2", b'{"images": [{"file_name": "a.png"', b"\xff\xfe", b"not json"):
        (tmp_path / "coco.json").write_bytes(content)
        assert "coco.json cannot be read" in refusal(**spec)
    for content in (b"[]", b"{}", b'{"images": {}}', b'{"images": 5}', b"null"):
        (tmp_path / "coco.json").write_bytes(content)
        assert "names no images" in refusal(**spec)
    assert "nowhere.json cannot be read" in refusal(**{**spec, "path": str(tmp_path / "nowhere.json")})
    assert "nowhere does not exist" in refusal(**{**spec, "images": str(tmp_path / "nowhere")})


def test_a_coco_set_begins_although_its_first_image_is_missing(tmp_path: Path) -> None:
    source = built(**coco(tmp_path, {"file_name": "gone.png"}, A))
    assert "does not exist" in reason(source, "gone.png")
    assert number_of(source.open("a.png")) == 5


@needs_photos
def test_real_coco_files_list_the_real_photos() -> None:
    for name in ("instances.json", "captions.json"):
        source = built(kind="coco", path=str(DATA / "coco" / name), images=str(DATA / "photos"))
        assert sorted(source.image_ids()) == sorted(path.name for path in (DATA / "photos").glob("*.jpg"))
    assert source.open(source.image_ids()[0]).mode == "RGB"
