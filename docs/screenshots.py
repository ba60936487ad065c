"""Remake the picture of the gallery in this folder from a finished run.

    vigc run loop/recipes/shapes.yaml --run-dir runs/shapes
    python docs/screenshots.py runs/shapes

Needs Chromium (Debian's package `chromium`) and playwright. The picture in this folder
was made with the fonts of `fonts-inter` and `fonts-sil-charis`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from loop.cli import app

_FILE = Path(__file__).parent / "gallery.png"


def main() -> None:
    """Write the report of the run that is named on the command line, and photograph the page of its first round."""
    with tempfile.TemporaryDirectory() as folder:
        app(["report", sys.argv[1], "--out", f"{folder}/report"], standalone_mode=False)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1240, "height": 1080}, color_scheme="light")
            page.goto((Path(folder) / "report" / "round-0001.html").as_uri())
            page.select_option("[name=type]", "conversation")
            page.select_option("[name=sort]", "changed")
            page.screenshot(path=_FILE)
            browser.close()
    print(f"{_FILE}: {_FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
