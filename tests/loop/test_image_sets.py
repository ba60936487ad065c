"""Every kind of image set: what its ids are, that each opens the right picture anywhere, and what is said of sets that are wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter

from actors.filter import FilterWorker
from actors.generator import Generator, GeneratorOptions
from actors.images import BadImageError, ImageSource
from actors.shards import Shard, ShardImages, ShardResult
from loop.assembly import build_images
from loop.errors import UserError
from loop.round import counts_of
from loop.sets import ImageSet
from loop.sources.folder import ImageFolder
from loop.sources.places import Place
from policies.chain import FilterChain
from policies.filters import Parsable
from policies.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, QuestionType
from policies.records import Reason, from_table, to_table
from tests.actors.scripted_engine import ScriptedEngine
from tests.loop.image_sets import KINDS, encoded, noise, number_of, png, write_parquet, write_set, write_tar

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_photos = pytest.mark.skipif(not (DATA / "photos").is_dir(), reason=f"the real photos are not in {DATA}")
ROOT = Path(__file__).parents[2]


def built(**spec: Any) -> ImageSource:
    return build_images(TypeAdapter(ImageSet).validate_python(spec))


def refusal(**spec: Any) -> str:
    with pytest.raises(UserError) as caught:
        built(**spec)
    text = str(caught.value)
    assert text.isprintable()
    return text


def reason(source: ImageSource, image_id: str) -> str:
    with pytest.raises(BadImageError) as caught:
        source.open(image_id)
    assert str(caught.value).isprintable()
    return str(caught.value)


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
    FilterWorker(FilterChain([Parsable()]), lambda *part: written.append(part[2])).filter(shard, ShardResult(to_table(generated)))
    records = from_table(written[0])
    bad = [index for index, record in enumerate(records) if record.reasons == (Reason.UNREADABLE_IMAGE,)]
    assert bad == [0, 150, 299]
    assert (counts_of(records, [])["set_aside_images"], counts_of(records, [])["accepted"]) == (3, 297)


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
from loop.assembly import build_images
from loop.sets import ImageSet

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
    pictures = [noise(number) for number in range(3000)]
    num_bytes = sum(map(len, pictures))
    assert num_bytes > 30_000_000
    specs = [(write_set(kind, tmp_path / f"{kind}-small", pictures[:300]), write_set(kind, tmp_path / kind, pictures)) for kind in KINDS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", _GROWTH], input=json.dumps(specs).encode(), capture_output=True, check=True, env=environment
    )
    growth = dict(zip(KINDS, map(int, child.stdout.split()), strict=True))
    assert max(growth.values()) < num_bytes / 4, growth


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
        assert "lies outside the image folder" in reason(source, "../secret.png")
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


# ---- parquet and saved datasets


def test_parquet_cells_may_be_plain_bytes_structs_or_lists_of_one(tmp_path: Path) -> None:
    cells = [({"bytes": png(3), "path": None}, None), (png(3), pa.binary()), (png(3), pa.large_binary()), ([{"bytes": png(3)}], None)]
    for number, (cell, kind) in enumerate(cells):
        path = write_parquet(tmp_path / f"{number}.parquet", [cell, cell], kind)
        source = built(kind="parquet", path=str(path))
        assert source.image_ids() == [f"{number}.parquet/0", f"{number}.parquet/1"]
        assert number_of(source.open(f"{number}.parquet/1")) == 3


def test_a_cell_without_an_image_is_set_aside(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [{"bytes": png(1), "path": "a"}, None, {"bytes": None, "path": "/etc/passwd"}])
    source = built(kind="parquet", path=str(path))
    assert "x.parquet/1: holds no image" in reason(source, "x.parquet/1")
    assert "holds the path of an image, /etc/passwd, and not its bytes" in reason(source, "x.parquet/2")
    path = write_parquet(tmp_path / "y.parquet", [[{"bytes": png(1)}] * 2, []])
    assert "holds 2 images; expected one" in reason(built(kind="parquet", path=str(path)), "y.parquet/0")


def test_a_damaged_row_group_sets_its_rows_aside_and_no_others(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [noise(number) for number in range(30)], pa.binary())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = built(kind="parquet", path=str(path))
    unreadable = []
    for image_id in source.image_ids():
        try:
            source.open(image_id)
        except BadImageError:
            unreadable.append(image_id)
    assert unreadable == [f"x.parquet/{row}" for row in range(10, 20)]


def test_a_wrong_parquet_set_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [png(1)], pa.binary())
    assert "column 'picture' of" in (text := refusal(kind="parquet", path=str(path), column="picture"))
    assert text.endswith("x.parquet does not exist; expected encoded images, which are in ['image']")
    assert "column 'caption' of" in (text := refusal(kind="parquet", path=str(path), column="caption"))
    assert "is string; expected encoded images" in text
    assert "nowhere does not exist; expected a file or a folder of files" in refusal(kind="parquet", path=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty holds no file that ends in .parquet" in refusal(kind="parquet", path=str(tmp_path / "empty"))
    write_parquet(tmp_path / "empty" / "none.parquet", [], pa.binary())
    assert "hold no rows" in refusal(kind="parquet", path=str(tmp_path / "empty"))
    for content in (b"", b"PAR1", path.read_bytes()[:-20], b"x" * 5000):
        (tmp_path / "empty" / "none.parquet").write_bytes(content)
        assert "none.parquet cannot be read" in refusal(kind="parquet", path=str(tmp_path / "empty"))
    (tmp_path / "empty" / "new\nline.parquet").write_bytes(path.read_bytes())
    assert "cannot be part of an image id; rename it" in refusal(kind="parquet", path=str(tmp_path / "empty"))


def test_a_saved_dataset_dict_needs_a_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image()})
    part = datasets.Dataset.from_dict({"photo": [{"bytes": png(number), "path": None} for number in range(3)]}, features=features)
    datasets.DatasetDict({"train": part, "test": part.select([2])}).save_to_disk(tmp_path / "saved")
    spec = {"kind": "hf_dataset", "path": str(tmp_path / "saved"), "column": "photo"}
    assert "name one of its splits ['train', 'test'] as `split`" in refusal(**spec)
    assert "has no split 'dev'; it has ['train', 'test']" in refusal(**spec, split="dev")
    source = built(**spec, split="test")
    assert source.image_ids() == ["data-00000-of-00001.arrow/0"]
    assert number_of(source.open(source.image_ids()[0])) == 2
    assert "column 'image' of" in refusal(**{**spec, "column": "image"}, split="test")


def test_what_is_no_saved_dataset_is_named(tmp_path: Path) -> None:
    assert "is no local folder; copy it here" in refusal(kind="hf_dataset", path="memory://saved")
    spec = write_set("hf_dataset", tmp_path / "set", [png(number) for number in range(4)])
    assert "holds no state.json; expected a folder that save_to_disk has written" in refusal(kind="hf_dataset", path=str(tmp_path))
    file = next(Path(spec["path"]).glob("data-00001*.arrow"))
    whole = file.read_bytes()
    for content in (b"", b"ARROW1", whole[:100], b"\xff" * 400):
        file.write_bytes(content)
        assert f"{file.name} cannot be read" in refusal(**spec)
    file.unlink()
    assert f"{file.name} cannot be read" in refusal(**spec)
    state = Path(spec["path"]) / "state.json"
    for content in ("[]", '{"_data_files": []}', '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": [5]}', "{"):
        state.write_text(content)
        assert "state.json" in refusal(**spec)


def test_damaged_arrow_data_are_an_image_or_a_reason(tmp_path: Path) -> None:
    spec = write_set("hf_dataset", tmp_path / "set", [noise(number, 16) for number in range(8)])
    file = next(Path(spec["path"]).glob("data-00000*.arrow"))
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(30):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, len(data), 12)] = rng.integers(0, 256, 12)
        file.write_bytes(data.tobytes())
        try:
            source = built(**spec)
        except UserError:
            outcomes.add("refused")
            continue
        for image_id in source.image_ids():
            try:
                outcomes.add(source.open(image_id).mode)
            except BadImageError:
                outcomes.add("set aside")
    assert outcomes == {"refused", "RGB", "set aside"}


# ---- webdataset


def test_ids_of_tars_are_shards_with_members_and_other_members_are_left_alone(tmp_path: Path) -> None:
    long = "d" * 150 + "/" + "n" * 150 + ".webp"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "sub/b.PNG", long):
            info = tarfile.TarInfo(name)
            data = encoded(Image.new("RGB", (16, 12), (len(name) % 256, 0, 7)), {"a.jpg": "JPEG", "sub/b.PNG": "PNG"}.get(name, "WEBP"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, target in (
            ("l.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("h.png", tarfile.LNKTYPE, "a.jpg"),
            ("f.png", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo(".hidden.png"))
        tar.addfile(tarfile.TarInfo("notes.txt"))
    for path in ("x.tar", "*.tar", "[xy].tar", ""):
        source = built(kind="webdataset", path=str(tmp_path / path))
        assert source.image_ids() == ["x.tar/a.jpg", "x.tar/sub/b.PNG", f"x.tar/{long}"]
        assert all(source.open(image_id).size == (16, 12) for image_id in source.image_ids())
    assert "no such member" in reason(source, "x.tar/l.png")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read(tmp_path: Path, format: int) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"{'folder/' * 12}{number:020d}.png")
            info.size = len(png(number))
            tar.addfile(info, io.BytesIO(png(number)))
    source = built(kind="webdataset", path=str(tmp_path / "x.tar"))
    assert [number_of(source.open(image_id)) for image_id in source.image_ids()] == list(range(5))


def test_shards_keep_names_of_their_own_and_come_in_the_order_of_the_range(tmp_path: Path) -> None:
    for number in range(8, 12):
        write_tar(tmp_path / f"s-{number:03d}.tar", [("0.png", png(number))])
    source = built(kind="webdataset", path=str(tmp_path / "s-{009..011}.tar"))
    assert source.image_ids() == ["s-009.tar/0.png", "s-010.tar/0.png", "s-011.tar/0.png"]
    assert [number_of(source.open(image_id)) for image_id in source.image_ids()] == [9, 10, 11]


def test_a_sample_with_two_images_is_refused_with_both_names(tmp_path: Path) -> None:
    spec = {"kind": "webdataset", "path": str(tmp_path / "x.tar")}
    for first, second in (("a/0.png", "a/0.png"), ("a/0.jpg", "a/0.seg.png")):
        write_tar(tmp_path / "x.tar", [(first, png(1)), ("b/0.png", png(3)), (second, png(2))])
        assert f"x.tar has two images of the sample a/0: {first} and {second}; expected one for each" in refusal(**spec)


def test_a_wrong_webdataset_is_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [(f"{number}.png", png(number)) for number in range(20)])
    spec = {"kind": "webdataset", "path": str(tar)}
    whole = tar.read_bytes()
    for content in (b"", b"not a tar" * 100, whole[:700], whole[: len(whole) // 2], whole[:1024] + b"\xff" * 2000):
        tar.write_bytes(content)
        assert "x.tar cannot be read after" in refusal(**spec)
    (tmp_path / "y.tar").write_bytes(gzip.compress(whole))
    assert "expected a whole tar, not compressed" in refusal(kind="webdataset", path=str(tmp_path / "y.tar"))
    write_tar(tar, [("0.txt", b"x"), ("0.json", b"{}")])
    assert "holds no image" in refusal(**spec)
    write_tar(tar, [("new\nline.png", png(1))])
    assert "cannot be part of an image id; rename it" in refusal(**spec)
    for pattern, text in (
        ("x-{0..3}.tar", "there is no shard x-0.tar"), ("*.tgz", "there is no shard *.tgz"), ("gone/*.tar", "there is no folder"),
        ("gone.tar", "gone.tar does not exist"), ("{5..1}.tar", "the range {5..1} is empty"), ("{0..999999999}.tar", "makes more than"),
        ("{0..9999}{0..9999}.tar", "makes more than"),
    ):  # fmt: skip
        assert text in refusal(kind="webdataset", path=str(tmp_path / pattern))


@pytest.mark.timeout(60)
def test_headers_that_claim_too_much_or_lead_back_are_refused(tmp_path: Path) -> None:
    for type_, size in (
        (tarfile.GNUTYPE_LONGNAME, 1 << 40),
        (tarfile.XHDTYPE, 1 << 40),
        (tarfile.REGTYPE, -1024),
        (tarfile.XHDTYPE, -1024),
    ):
        info = tarfile.TarInfo("0.png")
        info.type, info.size = type_, size
        header = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "x.tar").write_bytes(header + bytes(4096))
        refusal(kind="webdataset", path=str(tmp_path / "x.tar"))


def test_a_shard_that_is_exchanged_behind_the_source_sets_images_aside(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("0.png", png(0)), ("1.png", png(1))])
    source = built(kind="webdataset", path=str(tar))
    assert number_of(source.open("x.tar/1.png")) == 1
    write_tar(tar, [("1.png", png(1)), ("0.png", png(0))])
    assert "has changed" in reason(source, "x.tar/1.png")
    write_tar(tar, [])
    assert "has changed" in reason(source, "x.tar/1.png")
