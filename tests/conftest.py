"""How the tests share two workers (`make test`): a file stays whole, all that starts a Ray stays on one, hostile inputs are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.hostile.fuzz import INPUTS


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if _is_worker(config):
        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if "cluster" in item.fixturenames else str(item.path)))


def pytest_sessionfinish(session: Any) -> None:
    if _is_worker(session.config):
        session.config.workeroutput["fuzzed"] = dict(INPUTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    INPUTS.update(getattr(node, "workeroutput", {}).get("fuzzed", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if INPUTS:
        terminalreporter.write_line(f"fuzzed inputs: {INPUTS.total()} in {len(INPUTS)} tests")
