"""A run folder of its own for a test, and the handle of its driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.store import Store
from tests.loop.make_run import RUN


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x"


@pytest.fixture
def store(run_dir: Path) -> Iterator[Store]:
    with Store.create(run_dir, RUN).locked() as store:
        yield store
