"""Image sets in containers: tables of Parquet and Arrow, tars of WebDataset. What is read, and what is said of those that are wrong."""

from __future__ import annotations

import gzip
import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError
from loop.sources.reading.places import Place
from loop.sources.webdataset import TarImages
from tests.loop.sources.image_sets import built, encoded, noise, number_of, png, reason, refusal, write_parquet, write_set, write_tar

# ---- parquet and saved datasets

IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


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
    path = write_parquet(tmp_path / "y.parquet", [[{"bytes": png(1)}] * 2, [{"bytes": png(1)}]])
    assert "holds 2 images; expected one" in reason(built(kind="parquet", path=str(path)), "y.parquet/0")


def test_paths_in_the_place_of_images_are_named_before_a_run(tmp_path: Path) -> None:
    cells = [{"bytes": None, "path": f"/data/{number}.jpg"} for number in range(3)]
    text = refusal(kind="parquet", path=str(write_parquet(tmp_path / "x.parquet", cells, IMAGE_STRUCT)))
    assert "none of the first 3 images of" in text
    assert "x.parquet/0: holds the path of an image, /data/0.jpg, and not its bytes" in text
    assert "embed them" in text


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
    assert "is not a local folder; copy it here" in refusal(kind="hf_dataset", path="memory://saved")
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


def test_headers_of_several_shards_are_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", [("0.png", png(number)), ("1.gif", b"")])
    together, open_place = threading.Barrier(4, timeout=30), Place.open
    monkeypatch.setattr(Place, "open", lambda place, name="": together.wait() is not None and open_place(place, name))
    assert TarImages(str(tmp_path)).image_ids() == [f"{number}.tar/0.png" for number in range(4)]


def test_shards_behind_the_limit_are_not_read(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [("0.png", png(number)), ("1.png", png(number))])
    (tmp_path / "3.tar").write_bytes(b"no tar")
    assert TarImages(str(tmp_path), limit=3).image_ids() == ["0.tar/0.png", "0.tar/1.png", "1.tar/0.png"]
    with pytest.raises(UserError, match=r"3\.tar cannot be read after 0 images"):
        TarImages(str(tmp_path))


@pytest.mark.parametrize(("first", "second"), [("22.05.png", "22.06.png"), ("a/0.left.png", "a/0.right.png"), ("a/0.png", "a/0.seg.png")])
def test_images_that_share_a_key_are_images_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture, first: str, second: str) -> None:
    path = write_tar(tmp_path / "x.tar", [(first, png(1)), ("b/0.png", png(3)), (second, png(2))])
    source = built(kind="webdataset", path=str(path))
    assert source.image_ids() == [f"x.tar/{first}", "x.tar/b/0.png", f"x.tar/{second}"]
    assert [number_of(source.open(image_id)) for image_id in source.image_ids()] == [1, 3, 2]
    assert f"1 images share the name up to the first dot, such as {first} and {second}; all are taken" in caplog.text
    some = built(kind="webdataset", path=str(path), members=f"*{second[-8:]}")
    assert some.image_ids() == [f"x.tar/{second}"]
    assert "whose name fits *.gif" in refusal(kind="webdataset", path=str(path), members="*.gif")


def test_members_of_the_same_name_are_all_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "x.tar", [("0.png", png(1)), ("0.png", png(2)), ("#.png", png(3)), ("0.png", png(4))])
    source = built(kind="webdataset", path=str(path))
    assert source.image_ids() == ["x.tar/0.png", "x.tar/0.png#2", "x.tar/#.png", "x.tar/0.png#3"]
    assert [number_of(source.open(image_id)) for image_id in source.image_ids()] == [1, 2, 3, 4]
    assert "2 images have the name of an earlier one" in caplog.text


def test_tars_behind_one_another_are_all_read(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{number}.part", [(f"{number}.png", png(number)), ("0.txt", b"x")]) for number in range(3)]
    whole = tmp_path / "x.tar"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts) + bytes(100_000))
    source = built(kind="webdataset", path=str(whole))
    assert [number_of(source.open(image_id)) for image_id in source.image_ids()] == [0, 1, 2]
    whole.write_bytes(parts[0].read_bytes() + b"signature" * 100)
    assert "what follows its end mark, from byte 10240 on, is not a tar; cut it off" in refusal(kind="webdataset", path=str(whole))


def test_what_a_tar_holds_and_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("0.jpg", "0.txt", "1.avif", "2.HEIC", ".3.png", "4.tiff", "5.avif", "inner.tar")
    with tarfile.open(write_tar(tmp_path / "x.tar", [(name, png(1)) for name in names]), "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
        tar.addfile(link)
    assert built(kind="webdataset", path=str(tmp_path / "x.tar")).image_ids() == ["x.tar/0.jpg"]
    (said,) = [record.message for record in caplog.records]
    told = said.partition("not read are ")[2].partition("; read are")[0].split(", ")
    assert set(told) == {".avif 2", ".heic 1", "hidden files 1", ".tiff 1", ".tar 1", "links to images 1"}
    write_tar(tmp_path / "y.tar", [("1.avif", b"x")])
    assert "holds no image and holds .avif 1; expected members" in refusal(kind="webdataset", path=str(tmp_path / "y.tar"))


def test_a_saved_selection_of_rows_is_refused(tmp_path: Path) -> None:
    spec = write_set("hf_dataset", tmp_path / "set", [png(number) for number in range(4)])
    state = Path(spec["path"]) / "state.json"
    state.write_text(state.read_text().replace("{", '{"_indices_data_files": [{"filename": "indices.arrow"}],', 1))
    assert "selection of its rows; save the result of its flatten_indices() instead" in refusal(**spec)


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
