"""A report of a run: what it shows, and that bad input costs it no more than what is bad."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from loop.cli import app
from loop.errors import DamagedFileError, UserError
from loop.gallery import write_report
from loop.gallery.measures import held_out_scores, lead
from loop.gallery.thumbnails import pictures
from loop.setup.routing import record_images
from loop.store.commits import RoundState
from loop.store.run_store import RunInfo, Store
from policies.records import to_table
from tests.loop.gallery.made_run import NUM_RECORDS, PAYLOAD, commit_of, config_of, records, write_round, write_run
from tests.loop.store.make_run import flip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "run", RunInfo(run_id="made", config=config_of().model_dump(mode="json"))).locked() as store:
        yield store


def test_pages_show_the_records_of_their_round(report: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == ["index.html", "round-0001.html", "round-0002.html"]
    page = (report / "round-0001.html").read_text()
    assert page.count("<article") == NUM_RECORDS + 2
    assert page.count("data:image/webp;base64,") == NUM_RECORDS
    assert "the record is about no image" in page
    assert "is not an image of the shapes world" in page
    assert "a <del>shiny</del>" in page
    assert "62 of 62" in page


def test_everything_that_a_model_wrote_is_escaped(report: Path) -> None:
    page = (report / "round-0001.html").read_text()
    assert PAYLOAD not in page
    assert "<script>document" not in page
    assert 'onerror="' not in page
    assert page.count("<script>") == page.count("</script>") == 1
    assert "{{ 7 * 7 }}" in page


def test_a_page_names_nothing_outside_of_it(report: Path) -> None:
    for path in report.iterdir():
        links = re.findall(r'(?:src|href|action)="([^"]*)"', path.read_text())
        assert [one for one in links if not re.fullmatch(r"data:image/webp;base64,[\w+/=]+|#main|index\.html|round-\d{4}\.html", one)] == []


def test_the_index_says_that_the_run_is_still_being_written(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert "still being written" in page
    assert "no better on dev" in page
    assert "hallucinating answers" in page


def test_scores_have_the_interval_of_the_champion_and_rejected_candidates(made: Store) -> None:
    problems: list[str] = []
    (near,) = held_out_scores(made, made.commits(), problems)
    champion, rejected = near.series
    assert [point.value for point in champion.points] == [0.5, 0.75, 0.75]
    assert (champion.points[1].low, champion.points[1].high) == (champion.points[2].low, champion.points[2].high)
    assert champion.points[0].low == pytest.approx(0.352, abs=0.001)  # Wilson, 20 of 40
    assert [(point.round, point.value) for point in rejected.points] == [(2, 0.625)]
    assert problems == []
    found = lead(made.read_commit(1))
    assert found is not None
    assert found.difference == pytest.approx(0.15)
    assert found.low < found.difference < found.high


def test_the_answer_of_the_previous_champion_is_shown_where_it_is_stored(store: Store, tmp_path: Path) -> None:
    store.commit(commit_of(store, 0, []))
    fresh = records(1, 2)
    stale = [replace(one, answer="an earlier answer") for one in fresh]
    stale[1] = replace(stale[1], question="another question", answer="to another question")
    old, new = (store.write_part(1, name, to_table(of)) for name, of in (("records-00000", stale), ("records-00000-corrected", fresh)))
    store.commit(commit_of(store, 1, [new.entry, old.entry], state=RoundState.ACCEPTED))
    write_report(store, record_images(config_of()), tmp_path / "out")
    page = (tmp_path / "out" / "round-0001.html").read_text()
    assert page.count("Previous champion") == page.count("an earlier answer") == 1
    assert "to another question" not in page


def test_a_moved_image_gets_a_placeholder_and_the_rest_is_shown(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (640, 480), "red").save(photos / name)
    config = config_of(image_sets=[{"kind": "folder", "path": str(photos)}])
    first, second = (replace(one, image_id=name) for one, name in zip(records(1, 2), ("a.png", "b.png"), strict=True))
    write_run(tmp_path / "run", config, [[first, second, replace(first, record_id="r1-s00000-0009")]])
    (photos / "a.png").rename(tmp_path / "a.png")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--round", "1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "1 image has a placeholder: it cannot be read, such as a.png: does not exist" in done.output
    page = (tmp_path / "out" / "round-0001.html").read_text()
    assert (page.count("data:image/webp"), page.count("No picture"), "2 of them without a picture" in page) == (1, 2, True)

    photos.rename(tmp_path / "moved")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--round", "1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "2 images have placeholders: they cannot be read" in done.output
    assert "does not exist; expected a folder of images" in (tmp_path / "out" / "round-0001.html").read_text()


def test_large_and_noisy_images_become_small() -> None:
    class Noise:
        def image_ids(self) -> list[str]:
            return []

        def open(self, image_id: str) -> Image.Image:
            return Image.effect_noise((1000, 750), 120).convert("RGB")

    picture = pictures(Noise(), ["x"])["x"]
    assert len(picture.uri) < 17_000
    assert (picture.width, picture.height) == (1000, 750)


def test_a_round_without_accepted_records_is_shown(store: Store, tmp_path: Path) -> None:
    store.commit(commit_of(store, 0, []))
    write_round(store, 1, [[replace(one, accepted=False, reasons=("empty",)) for one in records(1, 3)]], RoundState.REJECTED)
    write_report(store, record_images(config_of()), tmp_path / "out")
    page = (tmp_path / "out" / "round-0001.html").read_text()
    assert "No record of this round was accepted." in page
    assert page.count("<article") == 3


def test_only_committed_rounds_are_shown(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no committed round yet"):
        write_report(store, record_images(config_of()), tmp_path / "out")
    store.commit(commit_of(store, 0, []))
    store.write_part(1, "records-00000", to_table(records(1, 2)))
    assert write_report(store, record_images(config_of()), tmp_path / "out").num_shown == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]


@pytest.mark.parametrize(("round", "why"), [(7, "is not committed"), (0, "is the seed model alone")])
def test_a_round_that_cannot_be_shown_is_refused_and_the_others_are_named(made: Store, tmp_path: Path, round: int, why: str) -> None:
    with pytest.raises(UserError, match=rf"round {round} of .* {why}; rounds with records are \[1, 2\]"):
        write_report(made, record_images(config_of()), tmp_path / "out", [round])
    assert not list(tmp_path.iterdir())


def test_a_run_whose_only_commit_is_damaged_is_refused(store: Store, tmp_path: Path) -> None:
    store.commit(commit_of(store, 0, []))
    flip(tmp_path / "run" / "rounds" / "0000" / "commit.json", 100)
    with pytest.raises(DamagedFileError, match=r"commit.json is damaged"):
        write_report(store, record_images(config_of()), tmp_path / "out")


def test_a_damaged_round_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run", config_of())
    flip(tmp_path / "run" / "rounds" / "0001" / "parts" / "records-00000.parquet", 400)
    written = write_report(store, record_images(config_of()), tmp_path / "out")
    assert list(written.num_shown) == [2]
    assert "round 1 is left out" in written.problems[0]
    assert "is damaged" in (tmp_path / "out" / "round-0001.html").read_text()


def test_a_report_replaces_an_earlier_one_and_nothing_else(made: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_report(made, record_images(config_of()), out)
    write_report(made, record_images(config_of()), out, [2], num_samples=5)
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "round-0002.html"]
    assert (out / "round-0002.html").read_text().count("<article") == 5
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes.txt', which is not of an earlier report"):
        write_report(made, record_images(config_of()), out)
    (out / "notes.txt").unlink()
    (out / "index.html").write_text("my own page")
    with pytest.raises(UserError, match=r"holds 'index.html'"):
        write_report(made, record_images(config_of()), out)
    assert (out / "index.html").read_text() == "my own page"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_behind_a_uri_is_shown(s3_uri: str, tmp_path: Path) -> None:
    with Store.create(s3_uri, RunInfo(run_id="made", config=config_of().model_dump(mode="json"))).locked() as store:
        store.commit(commit_of(store, 0, []))
        write_round(store, 1, [records(1, 4)], RoundState.ACCEPTED)
        done = CliRunner().invoke(app, ["report", s3_uri, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "round-0001.html").read_text().count("data:image/webp") >= 4
