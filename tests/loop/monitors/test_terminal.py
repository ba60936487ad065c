"""Terminals that cannot show every character: nothing that `vigc` writes may end it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from loop.monitors.progress import RunProgress
from loop.monitors.terminal import encode_any_text
from tests.paths import ROOT

SUBJECTS = ("自然", "物理 é")


def vigc(folder: Path, *arguments: str, encoding: str = "") -> subprocess.CompletedProcess[bytes]:
    """The command under a C locale that Python does not turn into UTF-8."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHONIOENCODING": encoding} if encoding else {}
    command = [sys.executable, "-m", "loop", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize(("encoding", "shown"), [
    ("", [b"\\u81ea\\u7136", b"\\u7269\\u7406 \\xe9"]),
    ("latin-1", [b"\\u81ea\\u7136", b"\\u7269\\u7406 \xe9"]),
    ("gbk", ["自然".encode("gbk"), "物理 é".encode("gbk")]),
])  # fmt: skip
def test_a_table_shows_what_the_terminal_lacks_in_other_characters(tmp_path: Path, encoding: str, shown: list[bytes]) -> None:
    problems = {str(i): {"question": "?", "choices": ["a", "b"], "answer": 0, "subject": name} for i, name in enumerate(SUBJECTS)}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "answers.json").write_text(json.dumps(dict.fromkeys(problems, "A")))
    done = vigc(tmp_path, "score", "scienceqa", "--data", "problems.json", "--predictions", "answers.json", encoding=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(name in done.stdout for name in shown)


def test_an_error_shows_what_the_terminal_lacks(tmp_path: Path) -> None:
    done = vigc(tmp_path, "status", "läufe")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: l\\udcc3\\udca4ufe holds no run")


def test_a_file_name_that_the_locale_cannot_spell_is_an_error_with_its_remedy() -> None:
    script = "import sys; from loop import cli; cli.app = lambda **_: open('l\\xe4ufe'); cli.main()"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the name 'l\\xe4ufe' cannot be used: this locale encodes file names as ")
    assert "LC_ALL=C.UTF-8" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_live_progress_draws_what_an_ascii_terminal_has() -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=screen, force_terminal=True, width=100)
    with RunProgress(console) as progress, progress.stage("generate", total=4, unit="shards") as stage:
        stage.advance(2)
    screen.flush()


def test_every_stream_of_a_process_takes_symbols_letters_and_halves_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    encode_any_text()
    stream.write("a…b │ ü \udcc3")
    stream.flush()
    assert written.getvalue() == b"a?b ? \\xfc \\udcc3"
