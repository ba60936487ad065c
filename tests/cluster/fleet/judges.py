"""A small real function that ends tasks as filters do, and can be broken from outside. Without torch: its process starts in a second."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cluster.errors import FinalError
from policies.errors import running
from tests.cluster.marks import told_to


def judge(folder: Path, task: int, _: object, served: tuple[int, str, float]) -> float:
    """Judges what an engine served and writes a part. `folder` is where tests leave marks that change what happens."""
    (folder / f"tried_{task}_{time.monotonic_ns()}").touch()
    _reach(folder, "judging", task)
    if told_to(folder / f"wrong_at_{task}"):
        raise ValueError(f"record {task} is wrong")
    if told_to(folder / f"full_at_{task}"):
        raise FinalError("the disk is full")
    if told_to(folder / f"misjudge_at_{task}"):
        with running("filter 'mine'"):
            raise KeyError(task)
    if told_to(folder / f"busy_at_{task}"):
        raise OSError("busy")
    if told_to(folder / f"die_at_{task}"):
        os._exit(1)
    _reach(folder, "writing", task)
    (folder / f"part_{task}").write_text(str(task))
    return 2 * served[2]


def _reach(folder: Path, moment: str, task: int) -> None:
    """Says where this process is, and stays there if it is told to."""
    (folder / f"{moment}_{task}").write_text(str(os.getpid()))
    if told_to(folder / f"hold_{moment}_{task}"):
        time.sleep(60)
