import json
import subprocess
import sys

import pytest

from tests.cluster.resources.autoscaling import ENVIRONMENT, MOST, autoscaling_head
from tests.paths import ROOT


@pytest.mark.slow
def test_an_autoscaling_cluster_is_asked_for_what_is_missing_and_for_no_more() -> None:
    """About 25 s: Ray's autoscaler is real, and so are the nodes that it starts."""
    with autoscaling_head() as address:
        command = [sys.executable, "-m", "tests.cluster.resources.autoscaling", address]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cpus"] == 0, "nothing is there before it is asked for"
    assert found["first"] in (1, 2), "the first node has room for two"
    assert (found["engines"], found["nodes"]) == (MOST, 2)
    assert found["asked"] == []
