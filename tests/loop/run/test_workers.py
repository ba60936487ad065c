from pathlib import Path

import pytest

from cluster.resources.placement import EngineRange
from loop.config.engine_config import ClusterConfig
from loop.config.run_config import parse_config
from loop.run.workers import absent, engine_range
from loop.setup.planning import local_paths
from tests.loop.run.small_run import CONFIG


@pytest.mark.parametrize(
    ("keys", "is_local", "expected"),
    [
        ({"num_engines": 4}, True, EngineRange(4, 4, is_asked_for=False)),
        ({"num_engines": 4, "min_engines": 2}, False, EngineRange(2, 4, is_asked_for=True)),
        ({"num_engines": "auto"}, True, EngineRange(1, None, is_asked_for=False)),
        ({"num_engines": "auto", "max_engines": 8}, False, EngineRange(1, 8, is_asked_for=False)),
        ({"num_engines": "auto", "max_engines": 8, "node_wait_s": 600}, False, EngineRange(1, 8, is_asked_for=True)),
        ({"num_engines": "auto", "node_wait_s": 600}, False, EngineRange(1, None, is_asked_for=True)),
    ],
)
def test_how_many_engines_a_run_begins_with_takes_and_asks_for(keys: dict[str, object], is_local: bool, expected: EngineRange) -> None:
    assert engine_range(ClusterConfig.model_validate(keys), is_local=is_local) == expected


@pytest.mark.parametrize(
    ("keys", "planned"),
    [
        ({"num_engines": 4}, 4),
        ({"num_engines": "auto", "trainer_ranks": 2}, 2),
        ({"num_engines": "auto", "trainer_ranks": 2, "max_engines": 1}, 1),
        ({"num_engines": "auto", "trainer_ranks": 2, "min_engines": 3}, 3),
        ({"num_engines": "auto", "trainer_ranks": 2, "colocated": False}, 1),
    ],
)
def test_engines_beside_colocated_ranks_are_planned_for(keys: dict[str, object], planned: int) -> None:
    assert ClusterConfig.model_validate(keys).planned_engines == planned


def test_a_node_lacks_what_actors_read_and_it_has_not(tmp_path: Path) -> None:
    photos = {"kind": "llava_json", "path": "/annotations/read/by/the/driver.json", "images": str(tmp_path / "photos")}
    shards = {"kind": "webdataset", "path": str(tmp_path / "{0..9}.tar")}
    config = parse_config({**CONFIG, "seed_data": {"data": photos}, "image_sets": [{"kind": "folder", "path": str(tmp_path)}, shards]})
    paths = local_paths(config)
    assert paths == sorted([config.model_path, str(tmp_path), str(tmp_path / "photos")])
    assert absent(paths) == f"{tmp_path}/photos cannot be read there; put it on every node at the same path, or on a shared folder"
    (tmp_path / "photos").mkdir()
    assert absent(paths) == ""
