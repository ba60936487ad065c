"""A run folder of its own for a test, the handle of its driver, and a small run that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.store import Store
from tests.loop.make_run import RUN
from tests.loop.small_run import vigc, write_config


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x"


@pytest.fixture
def store(run_dir: Path) -> Iterator[Store]:
    with Store.create(run_dir, RUN).locked() as store:
        yield store


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run and what it printed; nothing may be changed in it."""
    folder = tmp_path_factory.mktemp("finished")
    result = vigc("run", str(write_config(folder)), "--run-dir", "runs/small", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "small", result.stdout
