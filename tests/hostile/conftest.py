"""Says at the end how many hostile inputs were tried."""

from __future__ import annotations

from typing import Any

from tests.hostile.fuzz import INPUTS
from tests.loop.conftest import run_dir, store  # noqa: F401 (fixtures)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if INPUTS:
        terminalreporter.write_line(f"fuzzed inputs: {INPUTS.total()} in {len(INPUTS)} tests")
