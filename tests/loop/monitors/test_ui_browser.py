"""MLflow's pages in Chromium, on a finished run: the report, its rounds, charts, and records with their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loop.monitors.ui import page, serving
from tests.loop.monitors.tracked import Tracked, tracked_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

LOAD_S = 60.0
"""Time limit for what MLflow's page loads."""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Tracked:
    return tracked_run(tmp_path_factory.mktemp("tracked"), empty_database)


@pytest.fixture(scope="module")
def address(tracked: Tracked) -> Iterator[str]:
    with serving(tracked.mirror.tracking_uri, None) as (_, address):
        yield address


@pytest.fixture
def shown(browser: Browser) -> Iterator[Page]:
    shown = browser.new_page(viewport={"width": 1280, "height": 1000})
    shown.set_default_timeout(1000 * LOAD_S)
    yield shown
    shown.close()


def test_the_page_of_a_run_has_its_report_and_its_rounds(tracked: Tracked, address: str, shown: Page) -> None:
    ids = tracked.mirror.ids()
    assert ids is not None
    shown.goto(page(address, *ids))
    shown.wait_for_selector("text=Last decision")
    shown.wait_for_selector("text=Child runs")
    shown.wait_for_selector("text=round 2")
    shown.goto(page(address, *ids).replace("?", "/model-metrics?"))
    shown.wait_for_selector(".js-plotly-plot")


def test_a_record_is_shown_with_its_picture_and_waits_for_review(tracked: Tracked, address: str, shown: Page) -> None:
    trace_id = next(iter(tracked.in_queue()))
    shown.goto(f"{address}/#/experiments/{tracked.experiment_id}/traces?selectedEvaluationId={trace_id}&startTimeLabel=ALL")
    shown.wait_for_selector("img[src^='data:image/webp']")
    shown.goto(f"{address}/#/experiments/{tracked.experiment_id}/review-queue?workflowType=genai")
    shown.wait_for_selector(f"text={tracked.mirror.run_name} ({tracked.mirror.run_id})")
