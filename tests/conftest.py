"""Splits the tests between two workers (`make test`): files stay whole, tests that start Ray share a worker, fuzzed inputs are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.hostile.fuzz import INPUTS

_STARTS_RAY = ("tests/cluster/", "tests/actors/training/test_qformer_training.py")


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile("busy machine", deadline=None)
    settings.load_profile("busy machine")
    if _is_worker(config):
        torch.set_num_threads(1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Not `--dist loadgroup`: pytest-xdist 3.8 marks groups in an attribute that pytest 9.2 no longer reads."""
    return _FilesWholeAndOneRay(config, log)


class _FilesWholeAndOneRay(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if file.startswith(_STARTS_RAY) else file


def pytest_sessionfinish(session: Any) -> None:
    if _is_worker(session.config):
        session.config.workeroutput["fuzzed"] = dict(INPUTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    INPUTS.update(getattr(node, "workeroutput", {}).get("fuzzed", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if INPUTS:
        terminalreporter.write_line(f"fuzzed inputs: {INPUTS.total()} in {len(INPUTS)} tests")
