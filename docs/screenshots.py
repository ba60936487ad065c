"""Remake the pictures of the gallery and of MLflow in this folder from a finished run.

    vigc run loop/recipes/shapes.yaml --run-dir runs/shapes
    python docs/screenshots.py runs/shapes

Needs Chromium (Debian's package `chromium`) and playwright. The pictures in this folder
were made with the fonts of `fonts-inter` and `fonts-sil-charis`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from loop.cli import app
from loop.monitors.ui import find_place, page, serving
from loop.store.run_store import Store

_FOLDER = Path(__file__).parent
_CHARTS_S = 60.0
"""Time limit for MLflow's charts to appear."""


def main() -> None:
    """Photograph the gallery and the charts in MLflow of the run that is named on the command line."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for file in (gallery(browser, sys.argv[1]), charts(browser, sys.argv[1])):
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
        browser.close()


def gallery(browser: Browser, run_dir: str) -> Path:
    """Write the report of a run, and photograph the page of its first round."""
    with tempfile.TemporaryDirectory() as folder:
        app(["report", run_dir, "--out", f"{folder}/report"], standalone_mode=False)
        shown = browser.new_page(viewport={"width": 1240, "height": 1080}, color_scheme="light")
        shown.goto((Path(folder) / "report" / "round-0001.html").as_uri())
        shown.select_option("[name=type]", "conversation")
        shown.select_option("[name=sort]", "changed")
        shown.screenshot(path=_FOLDER / "gallery.png")
    return _FOLDER / "gallery.png"


def charts(browser: Browser, run_dir: str) -> Path:
    """Photograph the charts of a run in MLflow's UI."""
    uri, ids = find_place(Store.open(run_dir))
    with serving(uri, None) as (_, address):
        shown = browser.new_page(viewport={"width": 1240, "height": 900}, color_scheme="light")
        shown.goto(page(address, *ids).replace("?", "/model-metrics?"))
        shown.wait_for_selector(".js-plotly-plot", timeout=1000 * _CHARTS_S)
        shown.click("[data-component-id='mlflow.assistant.chat_panel.close']")
        shown.wait_for_timeout(3000)
        shown.screenshot(path=_FOLDER / "mlflow.png")
    return _FOLDER / "mlflow.png"


if __name__ == "__main__":
    main()
