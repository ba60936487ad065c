"""The same pictures as every kind of image set that a config can name, written with the tools that write such sets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter

from actors.images import BadImageError, ImageSource
from loop.config.sets import ImageSet
from loop.errors import UserError
from loop.setup.assembly import build_images

KINDS = ("folder", "coco", "parquet", "webdataset", "hf_dataset")


def png(number: int, size: tuple[int, int] = (16, 12)) -> bytes:
    """A picture whose first pixel tells its number."""
    image = Image.new("RGB", size, (number % 256, number // 256, 7))
    return encoded(image)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    sink = io.BytesIO()
    image.save(sink, format)
    return sink.getvalue()


def noise(number: int, side: int = 64) -> bytes:
    """A picture of about `3 * side ** 2` bytes."""
    return encoded(Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)))


def number_of(image: Image.Image) -> int:
    red, green, _ = np.asarray(image)[0, 0].tolist()
    return red + 256 * green


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, column: list[Any], kind: pa.DataType | None = None, rows_per_group: int = 10) -> Path:
    pq.write_table(pa.table({"image": pa.array(column, kind), "caption": ["x"] * len(column)}), path, row_group_size=rows_per_group)
    return path


def write_set(kind: str, folder: Path, pictures: list[bytes]) -> dict[str, Any]:
    """The pictures as a set of a kind, in two files where it has files; returns the set as a config names it."""
    folder.mkdir()
    half = len(pictures) // 2
    names = [f"{number:06d}.png" for number in range(len(pictures))]
    match kind:
        case "folder":
            for name, data in zip(names, pictures, strict=True):
                (folder / name).write_bytes(data)
            return {"kind": kind, "path": str(folder)}
        case "coco":
            write_set("folder", folder / "images", pictures)
            images = [{"id": 1000 + number, "file_name": name, "width": 16} for number, name in enumerate(names)]
            (folder / "instances.json").write_text(json.dumps({"info": {}, "images": images, "annotations": [{"image_id": 1000}]}))
            return {"kind": kind, "path": str(folder / "instances.json"), "images": str(folder / "images")}
        case "parquet":
            cells = [{"bytes": data, "path": name} for name, data in zip(names, pictures, strict=True)]
            write_parquet(folder / "a.parquet", cells[:half])
            write_parquet(folder / "b.parquet", cells[half:])
            return {"kind": kind, "path": str(folder)}
        case "webdataset":
            for shard, part in (("000", slice(0, half)), ("001", slice(half, None))):
                members = [(name.replace(".png", suffix), data) for name, png_ in zip(names[part], pictures[part], strict=True)
                           for suffix, data in ((".json", b"{}"), (".png", png_), (".txt", b"a caption"))]  # fmt: skip
                write_tar(folder / f"train-{shard}.tar", members)
            return {"kind": kind, "path": str(folder / "train-{000..001}.tar")}
        case "hf_dataset":
            import datasets

            features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
            rows = {"image": [{"bytes": data, "path": None} for data in pictures], "number": list(range(len(pictures)))}
            datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved", num_shards=2)
            return {"kind": kind, "path": str(folder / "saved")}
    raise AssertionError(kind)


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
