"""The made run and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loop.gallery import write_report
from loop.setup.routing import record_images
from loop.store.run_store import Store
from tests.loop.gallery.made_run import config_of, write_run

if TYPE_CHECKING:
    pass


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run of two rounds; nothing may be changed in it."""
    return write_run(tmp_path_factory.mktemp("made") / "run", config_of())


@pytest.fixture(scope="session")
def report(made: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its report."""
    folder = tmp_path_factory.mktemp("report") / "out"
    write_report(made, record_images(config_of()), folder, state="running")
    return folder
