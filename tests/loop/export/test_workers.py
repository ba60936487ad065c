"""Images of an export are read in several processes: what is written stays the same, and no process outlives a killed one."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image

from loop.errors import ExportError
from loop.export import export, pictures, rows
from loop.sources.folder import ImageFolder
from loop.store.run_store import RunInfo, Store
from tests.loop.export import odd_images
from tests.loop.export.odd_images import OddImages
from tests.loop.export.test_export import KEPT, commit

NUM_IMAGES = 12
TIMEOUT_S = 60


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A run whose second batch of images is read in other processes, with names that collide and a file that is no image."""
    monkeypatch.setattr(pictures, "_NUM_READ_HERE", 1)
    monkeypatch.setattr(rows, "_ROWS_PER_BATCH", 2)
    folder = tmp_path / "images"
    for number in range(NUM_IMAGES):
        path = folder / f"{number % 3}?" / f"{'Xx'[number % 2]}{number // 4}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sink = io.BytesIO()
        Image.new("RGB", (40, 30), (number * 9, 90, 200)).save(sink, "JPEG")
        path.write_bytes(sink.getvalue())
    (folder / "broken.jpg").write_bytes(b"no image")
    ids = [*ImageFolder(folder).image_ids(), *ImageFolder(folder).image_ids()]
    records = [replace(KEPT, record_id=f"r0-s0-{number}", image_id=image_id) for number, image_id in enumerate(ids)]
    with Store.create(tmp_path / "run", RunInfo(run_id="x", config={})).locked() as store:
        commit(store, 0, records[:7], records[7:])
        yield store


@pytest.mark.parametrize("format", ["llava", *(pytest.param(name, marks=pytest.mark.slow) for name in ("parquet", "webdataset"))])
def test_every_byte_is_the_same_whatever_the_number_of_processes(run: Store, tmp_path: Path, format: str) -> None:
    source, num_children = ImageFolder(tmp_path / "images"), len(psutil.Process().children())
    one, several = (export(run, "all", format, tmp_path / f"{workers}", source, workers=workers) for workers in (1, 2))
    assert one.bad_images == several.bad_images
    assert len(one.bad_images) == 1
    files = {path.relative_to(one.path): path.read_bytes() for path in one.path.rglob("*") if path.is_file()}
    assert files == {path.relative_to(several.path): path.read_bytes() for path in several.path.rglob("*") if path.is_file()}
    if format == "llava":
        written = [data for path, data in files.items() if path.suffix == ".jpg"]
        assert sorted(written) == sorted(path.read_bytes() for path in (tmp_path / "images").rglob("[Xx]*.jpg"))
    assert len(psutil.Process().children()) <= num_children + 1, "only Python's own resource tracker is left"


@pytest.mark.parametrize("kill", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_export_that_is_killed_leaves_neither_a_folder_nor_a_process(tmp_path: Path, kill: signal.Signals) -> None:
    with Store.create(tmp_path / "run", RunInfo(run_id="x", config={})).locked() as store:
        commit(store, 0, [replace(KEPT, record_id=name, image_id=name) for name in ("a", "slow1", "slow2")])
    out = tmp_path / "out" / "llava"
    process = subprocess.Popen([sys.executable, "-m", odd_images.__name__, tmp_path / "run", out])
    deadline = time.monotonic() + TIMEOUT_S
    while len(children := psutil.Process(process.pid).children()) < 3 or not any(out.parent.glob(".*.tmp/images/a.png")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(kill)
    assert process.wait(TIMEOUT_S) != 0
    _, alive = psutil.wait_procs(children, timeout=TIMEOUT_S)
    assert not alive
    assert not out.exists()
    assert all(path.name.startswith(".") for path in out.parent.iterdir()) if kill == signal.SIGKILL else not [*out.parent.iterdir()]


@pytest.mark.slow
def test_a_process_that_dies_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_NUM_READ_HERE", 1)
    monkeypatch.setattr(rows, "_ROWS_PER_BATCH", 1)
    with Store.create(tmp_path / "run", RunInfo(run_id="x", config={})).locked() as store:
        commit(store, 0, [replace(KEPT, record_id=name, image_id=name) for name in ("a", "deadly")])
        with pytest.raises(ExportError, match="a process that reads images died; if memory is short, lower --workers"):
            export(store, "all", "llava", tmp_path / "out" / "llava", OddImages(), workers=2)
    assert list((tmp_path / "out").iterdir()) == []
