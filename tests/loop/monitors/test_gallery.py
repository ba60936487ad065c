"""The gallery among the artifacts of MLflow: a page a round and the index, once, and never at the cost of anything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from actors.images import ImageSource
from loop.config.run_config import RunConfig
from loop.monitors.mirror import gallery
from loop.monitors.mirror.gallery import GalleryWriter
from loop.monitors.mirror.records import RunRecords, record_source
from loop.monitors.tracking import Mirror
from loop.monitors.tracking_process import BackgroundMirror
from loop.setup.routing import record_images
from loop.store.run_store import Store
from tests.loop.gallery.made_run import config_of, records, write_run
from tests.loop.monitors.test_tracking import Seen, champion_folder, samples


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), "red").save(folder / name)
    return folder


@pytest.fixture
def photo_run(tmp_path: Path, photos: Path) -> Store:
    """A run of two rounds; the first is about two photos, the second about images that are in no folder."""
    config = config_of(image_sets=[{"kind": "folder", "path": str(photos)}])
    first = [replace(one, image_id=name) for one, name in zip(records(1, 2), ("a.png", "b.png"), strict=True)]
    return write_run(tmp_path / "run", config, [first])


def artifacts(seen: Seen, run_id: str) -> dict[str, str]:
    """The pages that a run has, by name."""
    found = seen.client.list_artifacts(run_id, "gallery")
    return {file.path.rpartition("/")[2]: Path(seen.client.download_artifacts(run_id, file.path)).read_text() for file in found}


def test_each_round_gets_a_page_once_and_a_missing_image_costs_a_warning(
    mirror: Mirror, photo_run: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commits = photo_run.commits()

    def mirrored(num_rounds: int) -> None:
        background = BackgroundMirror(
            mirror, samples, champion_folder, tmp_path / "mirror.log", records=record_source(photo_run, record_images, 20)
        )
        background.log_commits(commits[:num_rounds])
        assert background.finish("FINISHED", timeout_s=60.0), (tmp_path / "mirror.log").read_text()

    mirrored(2)
    assert "gallery" not in caplog.text
    mirrored(3)  # as after a resume: another process goes on
    assert caplog.text.count("the gallery in MLflow is incomplete: images of round 2 that cannot be shown: 19, such as shapes-101") == 1
    seen = Seen(mirror)
    assert [set(artifacts(seen, run_id)) for run_id in seen.child_ids] == [set(), {"round-0001.html"}, {"round-0002.html"}]
    pages = artifacts(seen, seen.parents[0].info.run_id)
    assert set(pages) == {"index.html", "round-0001.html", "round-0002.html"}
    assert (pages["round-0001.html"].count("<article"), pages["round-0001.html"].count("data:image/webp")) == (2, 2)
    assert pages["round-0002.html"].count("<article") == 20
    assert pages["index.html"].count("data:image/webp") == 2
    assert 'href="round-0002.html"' in pages["index.html"]
    assert [run.data.tags.get("vigc.gallery", "")[:9] for run in seen.children] == ["", "complete", "images of"]
    assert all(run.data.tags["vigc.mirrored"] == "complete" for run in seen.children)


def images_that_hang(config: RunConfig) -> Callable[[int], ImageSource]:
    time.sleep(60.0)
    return record_images(config)


def test_a_gallery_that_cannot_be_written_is_left_out_for_good(mirror: Mirror, photo_run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = photo_run.commits()
    mirror.log_commits(commits, samples, champion_folder)
    monkeypatch.setattr(gallery, "TIMEOUT_S", 0.2)
    lacking = mirror.log_gallery(commits[:2], GalleryWriter(RunRecords(record_source(photo_run, images_that_hang, 20))).write)
    assert lacking == ["round 1 has no page: GalleryTimeoutError: it takes longer than 0 s"]
    (Path(photo_run.uri) / photo_run.commits()[2].file("selected.parquet").path).unlink()
    whole = GalleryWriter(RunRecords(record_source(photo_run, record_images, 20)))
    (damaged,) = mirror.log_gallery(commits, whole.write)
    assert damaged.startswith("round 2 is left out: ")
    assert mirror.log_gallery(commits, whole.write) == []
    seen = Seen(mirror)
    assert [set(artifacts(seen, run_id)) for run_id in seen.child_ids] == [set(), set(), {"round-0002.html"}]
    assert "is left out" in artifacts(seen, seen.parents[0].info.run_id)["index.html"]
