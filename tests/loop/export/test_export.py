"""Exports hold the right records, are readable by the tools they are for, and appear whole or not at all."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError
from loop.export import export
from loop.sources.folder import ImageFolder
from loop.sources.labelled import LabelledData
from loop.sources.llama_factory import LlamaFactoryData
from loop.sources.llava_json import LlavaJsonData
from loop.sources.messages import MessagesData
from loop.sources.routed import RoutedSource
from loop.sources.shapes.source import ShapesImages
from loop.sources.tables import parquet_images
from loop.sources.vigc_json import VigcJsonData
from loop.sources.webdataset import TarImages
from loop.store.commits import RoundCommit, RoundState
from loop.store.run_store import RunInfo, Store
from loop.store.selected import accepted_columns, committed_rows, index_of, records_of
from policies.records import Reason, Record, from_table, to_table
from tests.loop.sources.image_sets import KINDS, built, write_parquet, write_set, write_tar

KEPT = Record("r0-s0-0", 0, 0, "set/a", "conversation", "Ask.", 3, question="What <image>?", answer="A cat.", accepted=True)
REJECTED = replace(KEPT, record_id="r0-s0-1", accepted=False, reasons=(Reason.EMPTY,))
SECOND = replace(KEPT, record_id="r0-s1-0", shard=1, image_id="b", question="Where?", answer="There.", question_type="detail")
LATER = replace(KEPT, record_id="r1-s0-0", round=1, image_id="b")


class Pictures:
    """Small images with a colour of their own; `bad` cannot be read."""

    def open(self, image_id: str) -> Image.Image:
        if image_id == "bad":
            raise BadImageError("bad: is broken")
        return Image.new("RGB", (8, 6), (len(image_id), 20, 30))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "run", RunInfo(run_id="x", config={})).locked() as store:
        yield store


def commit(store: Store, round: int, *shards: list[Record]) -> None:
    parts = [store.write_part(round, f"records-{i:05d}", to_table(shard)) for i, shard in enumerate(shards)]
    if parts:
        parts.append(store.write_part(round, "selected", index_of(accepted_columns(store, parts, ()))))
    parts.append(store.write_part(round, "predictions", to_table([]).select(["record_id"]).replace_schema_metadata(None)))
    store.commit(
        RoundCommit(
            run_id="x", round=round, state=RoundState.ACCEPTED, epoch=store.epoch, started_at=0, committed_at=0, champion="c",
            champion_path="checkpoints/c", files=[part.entry for part in parts],
        )
    )  # fmt: skip


@pytest.fixture
def filled(store: Store) -> Store:
    commit(store, 0, [KEPT, REJECTED], [SECOND])
    commit(store, 1, [LATER])
    store.write_part(2, "records-00000", to_table([replace(LATER, record_id="not committed")]))
    return store


def test_records_of_a_round_are_read_once_each_in_order_with_what_selection_said(filled: Store) -> None:
    records = list(records_of(filled, filled.commits()[0]))
    assert records == [replace(KEPT, trained_on=True), REJECTED, replace(SECOND, trained_on=True)]


def test_a_round_of_a_version_that_stored_selected_records_is_read_as_it_was(store: Store) -> None:
    chosen = replace(KEPT, trained_on=True, score=0.5)
    parts = [store.write_part(0, "records-00000", to_table([KEPT, REJECTED])), store.write_part(0, "selected", to_table([chosen]))]
    store.commit(
        RoundCommit(
            run_id="x", round=0, state=RoundState.ACCEPTED, epoch=store.epoch, started_at=0, committed_at=0, champion="c",
            champion_path="checkpoints/c", files=[part.entry for part in parts],
        )
    )  # fmt: skip
    assert list(records_of(store, store.commits()[0])) == [chosen, REJECTED]
    rows = committed_rows(store, store.commits()[0])
    assert [table.to_pylist() for table in rows.read(("record_id", "score"))] == [[{"record_id": KEPT.record_id, "score": 0.5}]]


def test_llava_holds_accepted_records_and_their_images(filled: Store, tmp_path: Path) -> None:
    report = export(filled, "all", "llava", tmp_path / "out" / "llava", Pictures())
    assert (report.num_records, report.path, report.bad_images) == (3, tmp_path / "out" / "llava", ())
    entries = json.loads((report.path / "data.json").read_text())
    assert entries[0] == {
        "id": "r0-s0-0",
        "image": "set/a.png",
        "image_id": "set/a",
        "type": "conversation",
        "conversations": [{"from": "human", "value": "<image>\nWhat ?"}, {"from": "gpt", "value": "A cat."}],
    }
    assert [entry["image"] for entry in entries] == ["set/a.png", "b.png", "b.png"]
    assert sorted(path.name for path in (report.path / "images").rglob("*.png")) == ["a.png", "b.png"]
    with Image.open(report.path / "images" / "set" / "a.png") as image:
        assert image.getpixel((0, 0)) == (5, 20, 30)


CHANGED = replace(KEPT, original_answer="A dog.", view_answers=("A cat.", "a cat"))


def test_trl_dpo_holds_the_answers_that_correction_changed(store: Store, tmp_path: Path) -> None:
    same, doubted = replace(CHANGED, original_answer="a cat"), replace(CHANGED, record_id="r0-s0-2", view_answers=("A dog.",))
    commit(store, 0, [CHANGED, replace(same, record_id="r0-s0-1"), doubted, replace(CHANGED, record_id="r0-s0-3", accepted=False)])
    report = export(store, 0, "trl-dpo", tmp_path / "out", Pictures())
    first, second = pq.read_table(report.path / "data.parquet").to_pylist()
    assert (first["id"], second["id"]) == ("r0-s0-0", "r0-s0-2")
    assert first["prompt"] == [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What <image>?"}]}]
    assert first["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
    assert first["rejected"] == [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]
    assert Image.open(io.BytesIO(first["images"][0]["bytes"])).size == (8, 6)
    assert "2 records about 1 images" in report.card.read_text()


def test_trl_dpo_of_a_run_that_trains_on_pairs_holds_those_that_it_trusts(tmp_path: Path) -> None:
    config = {"training": {"objective": {"policy": "dpo", "options": {"min_agreement_gain": 0.5}}}}
    doubted = replace(CHANGED, view_answers=("A dog.", "A cat."))
    with Store.create(tmp_path / "run", RunInfo(run_id="x", config=config)).locked() as store:
        commit(store, 0, [CHANGED, replace(doubted, record_id="r0-s0-1")])
        commit(store, 1, [replace(doubted, round=1)])
        assert export(store, 0, "trl-dpo", tmp_path / "out", Pictures()).num_records == 1
        nothing = (
            r"nothing to export: rounds \[1\] of .* hold no pairs: correction changed the answers of no accepted records with readable"
        )
        with pytest.raises(UserError, match=nothing):
            export(store, 1, "trl-dpo", tmp_path / "none", Pictures())
    assert not (tmp_path / "none").exists()


def test_one_round_alone(filled: Store, tmp_path: Path) -> None:
    report = export(filled, 1, "llava", tmp_path / "out", Pictures())
    assert [entry["id"] for entry in json.loads((report.path / "data.json").read_text())] == ["r1-s0-0"]


def test_datasets_reads_messages_with_images(filled: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    report = export(filled, "all", "messages", tmp_path / "out.parquet", Pictures())
    loaded = datasets.load_dataset("parquet", data_files=str(report.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == report.num_records == 3
    row = loaded[0]
    assert row["messages"] == [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What <image>?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    assert isinstance(row["images"][0], Image.Image)
    assert np.asarray(row["images"][0])[0, 0].tolist() == [5, 20, 30]


def test_parquet_holds_all_records_with_their_reasons(filled: Store, tmp_path: Path) -> None:
    report = export(filled, 0, "parquet", tmp_path / "out.parquet", Pictures())
    records = from_table(pq.read_table(report.path))
    assert [record.record_id for record in records] == ["r0-s0-0", "r0-s0-1", "r0-s1-0"]
    assert records[1].reasons == ("empty",)


def test_image_ids_can_be_told_apart_between_sets(filled: Store, tmp_path: Path) -> None:
    report = export(filled, "all", "llava", tmp_path / "out", Pictures(), lambda round_index, image_id: f"{round_index}/{image_id}")
    names = {path.relative_to(report.path / "images").as_posix() for path in report.path.rglob("*.png")}
    assert names == {"0/b.png", "0/set/a.png", "1/b.png"}


def test_records_of_unreadable_images_are_left_out_and_told(store: Store, tmp_path: Path) -> None:
    commit(store, 0, [KEPT, replace(SECOND, image_id="bad"), replace(LATER, round=0, image_id="bad")])
    report = export(store, "all", "messages", tmp_path / "out.parquet", Pictures())
    assert (report.num_records, report.bad_images) == (1, ("bad: is broken",))


@pytest.mark.parametrize("format", ["llava", "messages", "parquet"])
def test_an_existing_path_is_never_overwritten(filled: Store, tmp_path: Path, format: str) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="export never overwrites"):
        export(filled, "all", format, tmp_path / "out", Pictures())
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("format", ["llava", "messages"])
def test_an_empty_export_says_so_and_leaves_nothing(store: Store, tmp_path: Path, format: str) -> None:
    commit(store, 0, [REJECTED, replace(KEPT, image_id="bad")])
    with pytest.raises(UserError, match=r"nothing to export: rounds \[0\] .* no accepted records with readable images .*bad: is broken"):
        export(store, "all", format, tmp_path / "out" / "x", Pictures())
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_without_records_has_nothing_to_export(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="committed rounds are"):
        export(store, "all", "parquet", tmp_path / "x", Pictures())
    commit(store, 0)
    with pytest.raises(UserError, match="no records"):
        export(store, "all", "parquet", tmp_path / "x", Pictures())


def test_a_failure_half_way_leaves_nothing(filled: Store, tmp_path: Path) -> None:
    class Failing(Pictures):
        def open(self, image_id: str) -> Image.Image:
            if image_id == "b":
                raise RuntimeError("engine trouble")
            return super().open(image_id)

    for format in ("llava", "messages"):
        with pytest.raises(RuntimeError):
            export(filled, "all", format, tmp_path / "out" / "x", Failing())
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_arguments_are_named(filled: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"round 7 .* is not committed; committed rounds are \[0, 1\]"):
        export(filled, 7, "llava", tmp_path / "x", Pictures())
    with pytest.raises(UserError, match=r"unknown export format 'csv'; expected one of \['llava', 'vigc', 'sharegpt', .*\]"):
        export(filled, "all", "csv", tmp_path / "x", Pictures())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="failed"):
        export(filled, "all", "parquet", tmp_path / "file" / "x", Pictures())


def test_an_image_id_cannot_lead_out_of_the_export(store: Store, tmp_path: Path) -> None:
    commit(store, 0, [replace(KEPT, image_id="../../outside")])
    with pytest.raises(Exception, match="leads out"):
        export(store, "all", "llava", tmp_path / "out", Pictures())
    assert not list(tmp_path.rglob("outside*"))


# ---- VIGC, cards, and the way back


KNOWLEDGE = replace(
    KEPT, record_id="r1-s0-1", round=1, image_id="b", question_type="okvqa", question="Who made it?", answer="gaudi",
    original_answer="guell",
    short_answers=("gaudi", "guell"), short_answer_weights=(70.0, 4.5), sentences=("gaudi",),
)  # fmt: skip


def test_vigc_holds_the_fields_that_vigc_keeps(store: Store, tmp_path: Path) -> None:
    detail = replace(SECOND, sentences=("There.",), original_answer="Here.")
    commit(store, 0, [detail, REJECTED])
    commit(store, 1, [KNOWLEDGE])
    report = export(store, "all", "vigc", tmp_path / "out", Pictures())
    first, second = json.loads((report.path / "data.json").read_text())
    assert first == {
        "image": "b.png", "image_id": "b", "instruction": "Ask.", "question": "Where?", "answer": "There.",
        "whole_text": "Ask. Question: Where? Answer: There.", "original_answer": "Here.", "answer_given_question": None,
        "answer_lst": ["There."], "id": "r0-s1-0", "type": "detail",
    }  # fmt: skip
    assert (second["answer"], second["weight"], second["type"]) == (["gaudi", "guell"], [70.0, 4.5], "okvqa")
    assert [path.name for path in (report.path / "images").iterdir()] == ["b.png"]


def test_sharegpt_is_found_by_llamafactory(filled: Store, tmp_path: Path) -> None:
    out = export(filled, "all", "sharegpt", tmp_path / "out", Pictures()).path
    [info] = json.loads((out / "dataset_info.json").read_text()).values()
    assert info == {"file_name": "data.json", "formatting": "sharegpt", "columns": {"messages": "conversations", "images": "images"}}
    first = json.loads((out / info["file_name"]).read_text())[0]
    assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt"]
    assert first["conversations"][0]["value"].startswith("<image>")
    assert [(out / image).is_file() for image in first["images"]] == [True]


def test_swift_holds_a_line_of_messages_for_each_record(filled: Store, tmp_path: Path) -> None:
    out = export(filled, "all", "swift", tmp_path / "out", Pictures()).path
    lines = [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]
    assert [message["role"] for message in lines[0]["messages"]] == ["user", "assistant"]
    assert all(line["messages"][0]["content"].count("<image>") == len(line["images"]) == 1 for line in lines)
    assert all((out / line["images"][0]).is_file() for line in lines)


def texts_of(data: LabelledData) -> list[tuple[str, str, str]]:
    return [(record.question_type, *record.turns[0]) for record in data.records()]


@pytest.mark.parametrize("format", ["llava", "vigc", "sharegpt", "sharegpt by its description", "swift", "messages", "messages file"])
def test_what_is_exported_is_read_again_with_the_same_texts_and_pictures(store: Store, tmp_path: Path, format: str) -> None:
    kept = [replace(KEPT, question="What?"), replace(SECOND, answer='Überall, "quoted".\nTwo lines.'), KNOWLEDGE]
    commit(store, 0, [kept[0], REJECTED], [kept[1]])
    commit(store, 1, [kept[2]])
    out = tmp_path / ("out.parquet" if format == "messages file" else "out")
    export(store, "all", format.split()[0], out, Pictures())
    read: dict[str, Callable[[], LabelledData]] = {
        "llava": lambda: LlavaJsonData(out / "data.json", out / "images"),
        "vigc": lambda: VigcJsonData(out / "data.json", out / "images"),
        "sharegpt": lambda: LlavaJsonData(out / "data.json", out),
        "sharegpt by its description": lambda: LlamaFactoryData(out),
        "swift": lambda: LlavaJsonData(out / "data.jsonl", out),
        "messages": lambda: MessagesData(out),
        "messages file": lambda: MessagesData(out),
    }
    data = read[format]()
    assert texts_of(data) == [(record.question_type, record.question, record.answer) for record in kept]
    assert [record.name.split("#")[0] for record in data.records()] == [record.record_id for record in kept]
    pictures = [data.open(record.image_id).getpixel((0, 0)) for record in data.records()]
    assert pictures == [(len(record.image_id), 20, 30) for record in kept]
    assert len(data.training_samples(6, 0)) == 6


CONFIG = {
    "name": "photos", "seed": 5, "model": "/home/someone/models/tiny-llava",
    "correction": {"policy": "sentence_by_sentence", "options": {}},
    "filters": [{"policy": "parsable", "options": {}}, {"policy": "confidence", "options": {"min_logprob": -0.5}}],
    "image_sets": [
        {"kind": "webdataset", "path": "/home/someone/secret/train-{0..9}.tar", "num_images": None},
        {"kind": "folder", "path": "s3://bucket/holiday `photos`", "num_images": 50},
    ],
    "generation": {"temperature": 1.0, "top_p": 0.9, "view": "raw"},
    "seed_data": {"data": {"kind": "llava_json", "path": "/home/someone/llava.json", "images": "/home/someone/coco"}, "num_samples": 9},
}  # fmt: skip


@pytest.fixture
def lineage(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "run", RunInfo(run_id="run-7", config=CONFIG)).locked() as store:
        written = {"generator_weight_version": "r0-abc", "corrector_weight_version": "r0-abc"}
        two_reasons = replace(REJECTED, reasons=(Reason.EMPTY, Reason.TOO_SHORT), **written)
        commit(store, 0)
        commit(
            store,
            1,
            [replace(KEPT, round=1, **written), replace(REJECTED, round=1, **written), replace(two_reasons, round=1, record_id="x")],
        )
        commit(store, 2, [replace(SECOND, round=2, image_id="bad"), replace(LATER, round=2, generator_weight_version="r1-def")])
        yield store


def test_webdataset_is_read_back_as_an_image_set(filled: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(filled, "all", "webdataset", out, Pictures(), shard_size=2).num_records == 3
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "data-00000.tar", "data-00001.tar"]
    source = TarImages(str(out / "data-*.tar"))
    assert source.image_ids() == ["data-00000.tar/r0-s0-0.png", "data-00000.tar/r0-s1-0.png", "data-00001.tar/r1-s0-0.png"]
    assert source.open("data-00000.tar/r0-s0-0.png").getpixel((0, 0)) == (5, 20, 30)
    with tarfile.open(out / "data-00001.tar") as tar:
        assert tar.getnames() == ["r1-s0-0.png", "r1-s0-0.json"]
        member = tar.extractfile("r1-s0-0.json")
        assert member is not None
        assert json.load(member)["conversations"][1]["value"] == LATER.answer
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["json"]["id"] for row in loaded] == ["r0-s0-0", "r0-s1-0", "r1-s0-0"]
    assert loaded[0]["png"].getpixel((0, 0)) == (5, 20, 30)


@pytest.mark.parametrize("format", ["messages", "parquet"])
def test_parquet_is_cut_into_files(filled: Store, tmp_path: Path, format: str) -> None:
    whole, cut = (export(filled, "all", format, tmp_path / f"{size}", Pictures(), shard_size=size).path for size in (None, 2))
    files = sorted(cut.glob("*.parquet"))
    assert [path.name for path in files] == ["data-00000.parquet", "data-00001.parquet"]
    assert pa.concat_tables([pq.read_table(path) for path in files]).equals(pq.read_table(whole / "data.parquet"))
    assert "data-*.parquet" in (cut / "README.md").read_text()


def test_files_of_one_format_or_name_are_not_cut(filled: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="format llava has one data file; --shard-size works with messages, parquet, trl-dpo, webdataset"):
        export(filled, "all", "llava", tmp_path / "a", Pictures(), shard_size=2)
    with pytest.raises(UserError, match=r"--shard-size writes several files, and --out .*a\.parquet is one; give a folder"):
        export(filled, "all", "parquet", tmp_path / "a.parquet", Pictures(), shard_size=2)


@pytest.mark.parametrize("format", ["llava", "vigc", "sharegpt", "swift", "messages", "parquet"])
def test_a_card_tells_where_the_records_come_from(lineage: Store, tmp_path: Path, format: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    report = export(lineage, "all", format, tmp_path / "out", Pictures())
    assert report.card == tmp_path / "out" / "README.md"
    text = report.card.read_text()
    header = hub.DatasetCard(text).data.to_dict()
    assert header["pretty_name"] == f"photos, rounds 0 to 2, as {format}"
    assert (header["license"], header["size_categories"]) == ("unknown", ["n<1K"])
    data_files = header["configs"][0]["data_files"]
    assert data_files == (["metadata.jsonl", "images/**"] if format in ("llava", "vigc", "sharegpt", "swift") else "data.parquet")
    assert 'load_dataset("FOLDER", split="train")' in text
    num = {"parquet": 5}.get(format, 2)
    assert f"{num} records about {3 if format == 'parquet' else 2} images, made by run `run-7`" in text
    assert f"| 1 | accepted | `r0-abc` | `r0-abc` | 3 | 1 | 1 | {3 if format == 'parquet' else 1} |" in text
    assert "| 2 | accepted | `r1-def` |  | 2 | 2 | 2 |" in text
    assert "2 of 5 records; one may have several reasons.\n\n| reason | records |\n| --- | --- |\n| empty | 2 |\n| too_short | 1 |" in text
    assert "- Seed model: `tiny-llava`" in text
    assert "`webdataset`, path `train-{0..9}.tar`; `folder`, num_images `50`, path `holiday 'photos'`" in text
    assert "- Filters, in order: `parsable`, `confidence(min_logprob=-0.5)`" in text
    assert "someone" not in text
    assert "1 images could not be read again and are left out" in text
    assert "The pictures keep the licences" in text


def test_the_card_of_a_file_lies_beside_it(lineage: Store, tmp_path: Path) -> None:
    report = export(lineage, 1, "messages", tmp_path / "round1.parquet", Pictures())
    assert (report.path, report.card) == (tmp_path / "round1.parquet", tmp_path / "round1.README.md")
    assert "photos, round 1, as messages" in report.card.read_text()
    report.path.unlink()
    with pytest.raises(UserError, match=r"round1\.README\.md exists; export never overwrites"):
        export(lineage, 1, "messages", tmp_path / "round1.parquet", Pictures())
    with pytest.raises(UserError, match="nothing to export"):
        export(lineage, 0, "messages", tmp_path / "out" / "round0.parquet", Pictures())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("format", ["llava", "vigc", "sharegpt", "swift", "messages", "parquet"])
def test_datasets_shows_pictures_of_every_format(lineage: Store, tmp_path: Path, format: str) -> None:
    datasets = pytest.importorskip("datasets")
    report = export(lineage, "all", format, tmp_path / "out", Pictures())
    loaded = datasets.load_dataset(str(report.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == report.num_records
    assert loaded["id" if format != "parquet" else "record_id"][-1] == LATER.record_id
    last = loaded[-1]
    image = last["images"][0] if format == "messages" else last["image"]
    assert np.asarray(image)[0, 0].tolist() == [1, 20, 30]
    if format in ("messages", "parquet"):
        file = str(report.path / "data.parquet")
        by_file = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache2"))
        assert by_file.features == loaded.features
    if format == "parquet":
        assert [row["image"] is None for row in loaded] == [row["image_id"] == "bad" for row in loaded]


def test_the_card_of_a_file_says_how_it_is_loaded(lineage: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    report = export(lineage, "all", "parquet", tmp_path / "x.parquet", Pictures())
    assert 'load_dataset("parquet", data_files="x.parquet", split="train")' in report.card.read_text()
    loaded = datasets.load_dataset("parquet", data_files=str(report.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded[0]["image"], Image.Image)
    assert isinstance(datasets.load_dataset(str(tmp_path), data_files="x.parquet", split="train")[0]["image"], Image.Image)


def test_short_answers_beside_plain_ones_are_lists_for_datasets(store: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    commit(store, 0, [KEPT, replace(KNOWLEDGE, round=0)])
    report = export(store, "all", "vigc", tmp_path / "out", Pictures())
    loaded = datasets.load_dataset(str(report.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [list(one) for one in loaded["answer"]] == [["A cat."], ["gaudi", "guell"]]


# ---- images keep their bytes and their names


def jpeg(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), (number, 90, 200)).save(sink, "JPEG", quality=70)
    return sink.getvalue()


def routed_sets(tmp_path: Path) -> RoutedSource:
    """Three sets: two folders with a name in common, in other cases too, and a set without files."""
    for number, (folder, name) in enumerate(
        (("a", "x.jpg"), ("a", "sub/y.jpg"), ("b", "x.jpg"), ("b", "SUB/Y.jpg"), ("b", "odd:name?.jpg"))
    ):
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_bytes(jpeg(number))
    return RoutedSource({"set0": ImageFolder(tmp_path / "a"), "set1": ImageFolder(tmp_path / "b"), "set2": ShapesImages(0, 0.0, 0.1, 1)})


@pytest.mark.parametrize("format", ["llava", "vigc", "sharegpt", "swift", "messages", "parquet"])
def test_a_file_keeps_its_bytes_and_its_name(store: Store, tmp_path: Path, format: str) -> None:
    images = routed_sets(tmp_path)
    ids = images.image_ids()
    commit(store, 0, [replace(KEPT, record_id=f"r{number}", image_id=one) for number, one in enumerate([*ids, ids[0]])])
    report = export(store, "all", format, tmp_path / "out", images)
    if format in ("llava", "vigc"):
        entries = json.loads((report.path / "data.json").read_text())
        found = {one["id"]: (one["image"], (report.path / "images" / one["image"]).read_bytes()) for one in entries}
        assert [one["image_id"] for one in entries] == [*ids, ids[0]]
    elif format in ("sharegpt", "swift"):
        text = (report.path / ("data.json" if format == "sharegpt" else "data.jsonl")).read_text()
        entries = json.loads(text) if format == "sharegpt" else [json.loads(line) for line in text.splitlines()]
        found = {one["id"]: (one["images"][0].removeprefix("images/"), (report.path / one["images"][0]).read_bytes()) for one in entries}
    else:
        rows = pq.read_table(report.path / "data.parquet").to_pylist()
        cells = {row.get("id", row.get("record_id")): (row["images"][0] if format == "messages" else row["image"]) for row in rows}
        found = {key: (cell["path"], cell["bytes"]) for key, cell in cells.items()}
    names = {image_id: found[f"r{number}"] for number, image_id in enumerate(ids)}
    assert names["set0|x.jpg"] == ("x.jpg", jpeg(0))
    assert names["set0|sub/y.jpg"] == ("sub/y.jpg", jpeg(1)) == found[f"r{len(ids)}"]
    assert names["set1|x.jpg"] == ("set1/x.jpg", jpeg(2))
    assert names["set1|SUB/Y.jpg"] == ("set1/SUB/Y.jpg", jpeg(3))
    assert names["set1|odd:name?.jpg"] == ("odd_name_.jpg", jpeg(4))
    name, data = names[ids[-1]]
    assert name.endswith(".png")
    assert Image.open(io.BytesIO(data)).size == (48, 48)


def test_images_of_containers_keep_their_bytes_and_what_names_they_have(store: Store, tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a/0.left.jpg", jpeg(1)), ("a/0.right.jpg", jpeg(2)), ("a/0.left.jpg", jpeg(3))])
    cells = [{"bytes": jpeg(4), "path": "/data/p.jpg"}, {"bytes": jpeg(5), "path": None}, {"bytes": jpeg(6), "path": "p.jpg"}]
    write_parquet(tmp_path / "p.parquet", cells)
    images = RoutedSource({"set0": TarImages(str(tmp_path / "t.tar")), "set1": parquet_images(tmp_path / "p.parquet")})
    commit(store, 0, [replace(KEPT, record_id=f"r{number}", image_id=one) for number, one in enumerate(images.image_ids())])
    report = export(store, "all", "llava", tmp_path / "out", images)
    entries = json.loads((report.path / "data.json").read_text())
    assert [one["image"] for one in entries] == [
        "a/0.left.jpg", "a/0.right.jpg", "set0/a/0.left.jpg", "p.jpg", "p.parquet/1.jpg", "set1/p.jpg",
    ]  # fmt: skip
    assert [(report.path / "images" / one["image"]).read_bytes() for one in entries] == [jpeg(number) for number in range(1, 7)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_set_gives_its_files_away_as_they_are(store: Store, tmp_path: Path, kind: str) -> None:
    pictures = [jpeg(number) for number in range(4)]
    images = RoutedSource({"set0": built(**write_set(kind, tmp_path / "set", pictures))})
    commit(store, 0, [replace(KEPT, record_id=f"r{number}", image_id=one) for number, one in enumerate(images.image_ids())])
    report = export(store, "all", "llava", tmp_path / "out", images)
    entries = json.loads((report.path / "data.json").read_text())
    assert [(report.path / "images" / one["image"]).read_bytes() for one in entries] == pictures
    named = [f"{number:06d}.png" for number in range(4)]
    unnamed = [f"data-0000{number // 2}-of-00002.arrow/{number % 2}.jpg" for number in range(4)]
    assert [one["image"] for one in entries] == (unnamed if kind == "hf_dataset" else named)
