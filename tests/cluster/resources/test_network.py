"""Ranks on nodes with addresses of their own, as on a real cluster: on one machine all other tests share an address."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.resources.namespaces import ENVIRONMENT, PORT, namespaces, not_permitted, ray_nodes
from tests.paths import ROOT

pytestmark = pytest.mark.slow


def play(scenario: str, folder: Path) -> dict[str, Any]:
    """A scenario of `in_namespaces` on two nodes with one CPU each."""
    if reason := not_permitted():
        pytest.skip(reason)
    with namespaces(2) as (head, other), ray_nodes([head, other], (1, 1)):
        command = head.command(
            sys.executable, "-m", "tests.cluster.resources.in_namespaces", scenario, f"{head.address}:{PORT}", str(folder)
        )
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_ranks_train_across_nodes_as_on_one_node_and_weights_travel_between_them(tmp_path: Path) -> None:
    found = play("train", tmp_path)
    assert found["STRICT_SPREAD"] == found["STRICT_PACK"] == found["sent"]


def test_a_rendezvous_that_is_refused_is_named_at_once_with_what_to_set(tmp_path: Path) -> None:
    found = play("refused", tmp_path)
    assert re.search(r"rank \d of 2, at 10\.77\.0\.\d, cannot reach .*refused.*GLOO_SOCKET_IFNAME=lo.*set both variables", found["error"])
    assert not found["was_lost"], "ranks that live are not restarted"
    assert found["seconds"] < 40
