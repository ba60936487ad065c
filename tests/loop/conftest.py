"""A run folder of its own for a test, the handle of its driver, and a small run that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.store.run_store import Store
from tests.actors.training.helpers import save_base
from tests.loop.run.seen_run import SeenRun, see_run
from tests.loop.store.make_run import RUN


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x"


@pytest.fixture
def store(run_dir: Path) -> Iterator[Store]:
    with Store.create(run_dir, RUN).locked() as store:
        yield store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model; nothing may be changed in it."""
    return save_base(tmp_path_factory.mktemp("model") / "untrained")


@pytest.fixture(scope="session")
def seen_run(tmp_path_factory: pytest.TempPathFactory) -> SeenRun:
    return see_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def finished(seen_run: SeenRun) -> tuple[Path, str]:
    """An undisturbed run and what it printed; nothing may be changed in it."""
    return seen_run.run_dir, seen_run.printed
