import pytest

from cluster.resources.placement import EngineRange
from loop.config.engine_config import ClusterConfig
from loop.run.workers import engine_range


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
