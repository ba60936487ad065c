"""The corpus of bad images through everything that touches an image: served or set aside with a reason, and nothing else."""

# ruff: noqa: PT017 (an input may be refused or not; where it is, the reason is looked at)

from __future__ import annotations

import json
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from actors.engines import EngineSpec
from actors.filter import filter_shard
from actors.generator import GeneratorOptions
from actors.images import BadImageError
from actors.processors import load_processor
from actors.shards import Shard, ShardImages
from actors.training.pixels import PixelReader
from actors.views import View, perturbed, raw
from actors.worker import EngineWorker
from loop.config.run_config import EMBEDDED_MODEL
from loop.errors import UserError
from loop.sources.folder import ImageFolder, open_image
from loop.sources.llava_json import LlavaJsonData
from loop.sources.shapes.views import flat_background
from loop.sources.tables import parquet_images
from loop.sources.webdataset import TarImages, index_of_shard
from policies.correction.methods import SentenceBySentence
from policies.filtering.chain import FilterChain
from policies.filtering.filters import Parsable
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, QuestionType
from policies.records import Reason, from_table
from policies.training.selection import score_of
from tests.actors.pipeline.test_pipeline import update_of
from tests.hostile import images as bad
from tests.hostile.fuzz import INPUTS, fuzzed, is_chaos
from tests.loop.sources.image_sets import write_parquet, write_tar

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def named(text: str) -> str:
    return ascii(text)[:30]


BOMB = "bomb-pixels.png"
MAX_SECONDS = 20.0
MAX_BYTES = 2 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "images"
    bad.fill(root, num_cuts=200 if is_chaos() else 8)
    return root


@pytest.fixture(scope="module")
def source(folder: Path) -> ImageFolder:
    return ImageFolder(folder)


@pytest.fixture(scope="module")
def served(source: ImageFolder) -> dict[str, bool]:
    """Every image of the corpus, and whether it is served; each within its bounds."""
    found = {}
    for image_id in source.image_ids():
        started = time.process_time()
        try:
            image = source.open(image_id)
            assert image.mode == "RGB"
            assert min(image.size) >= 1
            found[image_id] = True
        except BadImageError as error:
            assert str(error)
            found[image_id] = False
        assert time.process_time() - started < MAX_SECONDS, image_id
        assert psutil.Process().memory_info().rss < MAX_BYTES, image_id
        INPUTS["images"] += 1
    return found


def test_what_is_odd_but_whole_is_served_and_the_rest_is_set_aside(served: dict[str, bool]) -> None:
    expected = {"good.png", "link-inside.jpg", "folder.jpg/inside.png", "jpeg-and-zip.jpg", "png-and-html.png", *bad.NAMES}
    expected |= {name for name in served if name.startswith(("size-", "mode-", "turned-", "palette-"))}
    for name, is_served in served.items():
        if name in expected:
            assert is_served, name
        elif name.startswith(
            ("claims-", "thin-", "link-", "pipe", "device", "animated", "really-", "svg", "eps", "html", "pdf", "pickle", "zip", "text")
        ):
            assert not is_served, name
    assert len(served) > 130


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_containers_serve_what_the_folder_serves(folder: Path, served: dict[str, bool], tmp_path: Path, kind: str) -> None:
    names = [name for name in served if (folder / name).is_file() and not (folder / name).is_symlink() and name.isprintable()]
    cells = [(folder / name).read_bytes() for name in names]
    if kind == "parquet":
        source = parquet_images(write_parquet(tmp_path / "x.parquet", cells, pa.binary()))
        ids = source.image_ids()
    else:  # a folder for each: their names up to the first dot are not all different
        members = [(f"{number}/{name}", data) for number, (name, data) in enumerate(zip(names, cells, strict=True))]
        source = TarImages(str(write_tar(tmp_path / "x.tar", members)))
        ids = [f"x.tar/{member}" for member, _ in members]
        assert source.image_ids() == ids
    found = {}
    for name, image_id in zip(names, ids, strict=True):
        try:
            found[name] = source.open(image_id).mode == "RGB"
        except BadImageError as error:
            assert str(error).isprintable()
            found[name] = False
    assert found == {name: served[name] for name in names}
    assert len(names) > 120


@fuzzed(places=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=8), data=st.data())
def test_a_damaged_tar_is_refused_or_gives_images_and_reasons(tmp_path: Path, places: list[int], data: st.DataObject) -> None:
    members = [("a.png", bad.PNG), ("b.jpg", bad.JPEG), ("n" * 120 + ".png", bad.PNG), ("c.txt", b"text")]
    path = write_tar(tmp_path / "x.tar", members)
    whole = bytearray(path.read_bytes())
    for place in places:
        whole[place % len(whole)] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    index_of_shard.cache_clear()
    try:
        source = TarImages(str(path))
    except UserError as error:
        assert str(error).isprintable()
        return
    for image_id in source.image_ids():
        try:
            assert source.open(image_id).mode == "RGB"
        except BadImageError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("view", [raw, flat_background])
def test_what_is_served_goes_through_every_view_and_look(source: ImageFolder, served: dict[str, bool], view: View) -> None:
    images = ShardImages(source, view)
    for image_id, is_served in served.items():
        if image_id == BOMB:
            continue
        if is_served:
            seen = images.open(image_id)
            assert perturbed(seen, 0.1, seed=1, shift=0.1).size == seen.size
        else:
            for _ in range(2):
                with pytest.raises(BadImageError):
                    images.open(image_id)


@pytest.mark.slow
def test_the_largest_image_that_is_served_takes_no_gigabytes(source: ImageFolder) -> None:
    image = source.open(BOMB)
    tracemalloc.start()
    perturbed(flat_background(image), 0.1, seed=1, shift=0.1)
    assert tracemalloc.get_traced_memory()[1] < 1 << 30
    tracemalloc.stop()


def test_what_is_served_becomes_the_same_tensors_as_any_image(source: ImageFolder, served: dict[str, bool]) -> None:
    reader = PixelReader(load_processor(EMBEDDED_MODEL).image_processor, source)
    for image_id, is_served in served.items():
        if is_served:
            assert reader.read(image_id).tensors["pixel_values"].shape == (1, 3, 48, 48), image_id
        else:
            with pytest.raises(BadImageError):
                reader.read(image_id)


@pytest.mark.parametrize("image_id", bad.OUTSIDE, ids=named)
@pytest.mark.timeout(30)
def test_an_id_that_names_no_image_of_the_folder_is_set_aside(folder: Path, image_id: str) -> None:
    with pytest.raises(BadImageError) as caught:
        open_image(folder, image_id)
    assert str(caught.value).encode()


@pytest.mark.parametrize("image_id", [one for one in bad.OUTSIDE if one], ids=named)
def test_an_id_of_a_data_file_that_names_no_image_is_refused_or_set_aside(folder: Path, tmp_path: Path, image_id: str) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    entries = [{"id": name, "image": name, "conversations": turns} for name in ("good.png", image_id)]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    try:
        data = LlavaJsonData(tmp_path / "data.json", folder)
    except UserError as error:
        assert "record 1 of" in str(error)
        return
    with pytest.raises(BadImageError):
        data.open(image_id)


@fuzzed(kind=st.sampled_from(("jpg", "png", "webp")), places=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=8), data=st.data())
def test_damaged_bytes_are_an_image_or_a_reason(tmp_path: Path, kind: str, places: list[int], data: st.DataObject) -> None:
    whole = bytearray({"jpg": bad.JPEG, "png": bad.PNG, "webp": bad.WEBP}[kind])
    for place in places:
        whole[place % len(whole)] = data.draw(st.integers(0, 255))
    (tmp_path / f"x.{kind}").write_bytes(whole)
    try:
        image = open_image(tmp_path, f"x.{kind}", max_pixels=100_000)
        assert np.asarray(flat_background(image)).shape == (image.height, image.width, 3)
    except BadImageError as error:
        assert str(error)


def test_the_corpus_goes_through_the_whole_pipeline_on_the_real_model(source: ImageFolder, served: dict[str, bool]) -> None:
    policy = SentenceBySentence(max_new_tokens=8, num_views=1)
    worker = EngineWorker(EngineSpec("transformers", str(EMBEDDED_MODEL)), GeneratorOptions(max_new_tokens=24), policy)
    worker.start()
    worker.swap(update_of(EMBEDDED_MODEL, "r0"))
    instruction = CANONICAL_INSTRUCTIONS[QuestionType.CONVERSATION]
    tasks = tuple(GenerationTask(image_id, QuestionType.CONVERSATION, instruction) for image_id in source.image_ids())
    shard = Shard(1, 0, 5, tasks, source)
    written: list[Any] = []
    filter_shard(FilterChain([Parsable()]), score_of, None, lambda *part: written.append(part[2]), shard, *worker.write_records(shard))
    records = from_table(written[0])
    assert [record.image_id for record in records] == source.image_ids()
    unreadable = {record.image_id for record in records if Reason.UNREADABLE_IMAGE in record.reasons}
    assert unreadable == {image_id for image_id, is_served in served.items() if not is_served}
    kept = Counter(record.accepted for record in records)
    assert kept[True] > 20
    assert all(record.generated_text for record in records if record.image_id not in unreadable)
