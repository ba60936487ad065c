"""A run folder of its own for a test, the handle of its driver, an S3 server, a browser, and a small run that has ended."""

from __future__ import annotations

import logging
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from loop.store.run_store import Store
from tests.actors.training.helpers import save_base
from tests.loop.run.seen_run import SeenRun, see_run
from tests.loop.store.make_run import RUN

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium")


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server with the bucket `bucket`."""
    from moto.server import ThreadedMotoServer  # here because vLLM cannot start in a process that has imported it

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    _, port = moto.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"), timeout=10)
    yield f"http://127.0.0.1:{port}"
    moto.stop()


@pytest.fixture
def s3_uri(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid4().hex}/x"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
