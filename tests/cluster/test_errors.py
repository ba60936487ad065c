import pickle

import pytest

from cluster.errors import ClusterError, FleetError, NotEnoughResourcesError, TaskFailedError, TimeoutExceededError


@pytest.mark.parametrize(
    "error",
    [
        TaskFailedError("shard 7", 3, "OSError: gone"),
        NotEnoughResourcesError("two of one"),
        FleetError("none left"),
        TimeoutExceededError("too long"),
    ],
)
def test_errors_survive_pickling(error: ClusterError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_users_can_catch_the_standard_classes() -> None:
    assert issubclass(NotEnoughResourcesError, ValueError)
    assert issubclass(TimeoutExceededError, TimeoutError)
    assert "shard 7" in str(TaskFailedError("shard 7", 3, "x"))
