"""The made run, its report, and a browser to look at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loop.gallery import write_report
from loop.setup.routing import record_images
from loop.store.run_store import Store
from tests.loop.gallery.made_run import config_of, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium")


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
