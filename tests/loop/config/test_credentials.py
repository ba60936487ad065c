"""No credential is shown or stored."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from loop import cli
from loop.config.run_config import load_config
from loop.credentials import masked
from loop.errors import UserError
from loop.monitors.progress import RunProgress
from loop.monitors.tracking import Mirror, flatten_parameters
from loop.monitors.tracking_process import BackgroundMirror
from tests.loop.run.small_run import write_config


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("API request to http://alice:hunter2@127.0.0.1:9/api failed", "API request to http://***@127.0.0.1:9/api failed"),
        ("postgresql+psycopg2://u:p@ss@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("s3://AKEY:sec/ret+x@bucket/run", "s3://***@bucket/run"),
        ("https://host/x?a=1&X-Amz-Signature=abc&accessToken=c", "https://host/x?a=1&X-Amz-Signature=***&accessToken=***"),
        ("{'Authorization': 'Basic dXNlcjpw'}", "{'Authorization': 'Basic ***'}"),
        ("sent Bearer abc123def.ghi to it", "sent Bearer *** to it"),
        ("MLFLOW_TRACKING_PASSWORD=x1y2", "MLFLOW_TRACKING_PASSWORD=***"),
        ('{"api_key": "k1", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("Incorrect API key provided: sk-abcdefghijklmnopqrst.", "Incorrect API key provided: ***."),
        ("login as correct-horse failed", "login as *** failed"),
    ],
)
def test_credentials_of_every_kind_are_masked(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correct-horse")
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/v1/a@b.jpg", "https://[::1]:80/a@b", "sqlite:////tmp/mlflow.db", "s3://bucket/a:b@c",
        "unexpected token: '<'", "mail me@host.org", "round 1/3 generate: 12/64 shards, 3.1 records/s", "https://host/?max_tokens=5",
        "The bearer of the token is a key witness",
    ],
)  # fmt: skip
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_a_config_with_credentials_is_refused_and_the_refusal_does_not_repeat_them(tmp_path: Path) -> None:
    path = write_config(tmp_path, image_sets=[{"kind": "folder", "path": "s3://KEY:hunter2@bucket/photos"}])
    with pytest.raises(UserError, match=r"image_sets\.0\.path: holds credentials") as refused:
        load_config(path, ["filters=[{'my:Filter': {api_key: hunter2}}]"])
    assert "filters.0.my:Filter.api_key: holds credentials" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_neither_warnings_nor_the_log_of_the_mirror_hold_the_password_of_the_tracking_uri(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    log = tmp_path / "mlflow.log"
    uri = "http://alice:hunter2@127.0.0.1:9"
    mirror = BackgroundMirror(Mirror(uri, "vigc", "run", "run-1", {}), lambda _: ([], []), lambda _: None, log)
    mirror.log_commits([])
    mirror.finish("FINISHED", 60.0)
    assert "http://***@127.0.0.1:9" in caplog.text
    assert "http://***@127.0.0.1:9" in log.read_text(), "the reason is logged"
    assert "hunter2" not in caplog.text + log.read_text()


def test_parameters_errors_logs_notes_and_tracebacks_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "http://alice:hunter2@host"
    assert flatten_parameters({"a": {"uri": secret, "password": "x"}}) == {"a.uri": "http://***@host", "a.password": "***"}
    record = logging.LogRecord("x", logging.WARNING, "", 0, "cannot reach %s", (secret,), None)
    assert cli.PrintableLines("%(message)s").format(record) == "cannot reach http://***@host"
    with pytest.raises(SystemExit):
        cli._fail(f"cannot reach {secret}", 1)
    RunProgress(Console()).note(secret)
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        cli._print_masked(*sys.exc_info())  # pyright: ignore[reportArgumentType]
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out + shown.err
    assert "http://***@host" in shown.out
    assert shown.err.count("http://***@host") == 2
