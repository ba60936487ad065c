"""What nodes need of a run: which paths, and a run folder that is the driver's."""

import re
from pathlib import Path

from cluster.resources.node_report import versions
from loop.config.run_config import parse_config
from loop.config.sets import image_paths
from loop.setup.nodes import check_nodes, visit, wrong_here
from loop.store.storage.local import LocalStorage
from tests.loop.run.small_run import CONFIG

SETS = [
    {"kind": "folder", "path": "/data/photos"},
    {"kind": "coco", "path": "/data/instances.json", "images": "/data/train2017"},
    {"kind": "webdataset", "path": "/data/tars/train-{0000..0099}.tar"},
    {"kind": "parquet", "path": "s3://bucket/x.parquet"},
]


def test_nodes_need_images_and_neither_annotations_nor_uris() -> None:
    config = parse_config({**CONFIG, "image_sets": SETS})
    assert image_paths(config.data_sets) == ["/data/photos", "/data/tars", "/data/train2017"]


def test_what_is_wrong_on_a_node_that_joins_is_said_in_one_line(tmp_path: Path) -> None:
    storage, here = LocalStorage(tmp_path / "run"), versions()
    found = wrong_here([str(tmp_path / "photos")], storage, {**here, "Ray": "1.0"})
    assert re.search(r"Ray is .* there, and 1\.0 for the driver; .*photos is not there.*the run folder .* does not hold", found)
    storage.write("run.json", b"{}")
    assert wrong_here([str(tmp_path)], storage, here) == ""


def test_a_node_reads_the_drivers_mark_and_leaves_its_own(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "run")
    storage.write("marks/driver", b"x")
    assert visit(storage, "marks", "node-a") == ""
    assert storage.names("marks") == ["driver", "node-a"]


def test_a_run_folder_that_is_another_one_or_cannot_be_written_on_a_node_is_named(tmp_path: Path) -> None:
    assert "does not hold what the driver has written there; give --run-dir a folder that all nodes share" in visit(
        LocalStorage(tmp_path), "marks", "node-a"
    )
    storage = LocalStorage(tmp_path)
    storage.write("marks/driver", b"x")
    (tmp_path / "marks" / "node-a").mkdir()  # a file cannot be written there
    assert "cannot be used: " in visit(storage, "marks", "node-a")


def test_on_one_node_nothing_is_asked_or_written(tmp_path: Path) -> None:
    check_nodes(["/none"], LocalStorage(tmp_path / "run"), num_nodes=1, timeout_s=1)
    assert not (tmp_path / "run").exists()
