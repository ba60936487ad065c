"""Ray's messages to the driver reach the log, and not the terminal."""

import logging

import pytest
from ray._private import worker

from cluster.resources.messages import ray_messages_logged

PAGES = "\x1b[33mRaylet is terminated. " + "Possible reasons include: this. " * 20 + "\n" + "[state-dump] NodeManager\n" * 100


def test_a_message_of_many_lines_is_one_line_with_details(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    before = worker.print_to_stdstream
    with ray_messages_logged():
        worker.print_to_stdstream({"lines": [PAGES], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("Ray: Raylet is terminated. Possible")
    assert len(record.getMessage()) < 220
    assert record.__dict__["details"].count("[state-dump]") == 100
    assert capsys.readouterr() == ("", "")
    assert worker.print_to_stdstream is before
