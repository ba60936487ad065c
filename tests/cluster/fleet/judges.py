"""Small real actors that end tasks as filters do, and can be broken from outside. Without torch: their processes start in a second."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cluster.errors import FinalError
from policies.errors import running
from tests.cluster.marks import told_to


class Judge:
    """Judges what an engine served and writes a part. `folder` is where tests leave marks that change what happens."""

    def __init__(self, index: int, folder: Path) -> None:
        self.index = index
        self.folder = folder
        self._reach("constructing")
        if (folder / "refuse_construction").exists():
            raise OSError("the room is locked")

    def judge(self, task: int, served: tuple[int, str, float]) -> float:
        (self.folder / f"tried_{task}_{time.monotonic_ns()}").touch()
        self._reach("judging")
        if self._told_to("wrong", task):
            raise ValueError(f"record {task} is wrong")
        if self._told_to("full", task):
            raise FinalError("the disk is full")
        if self._told_to("misjudge", task):
            with running("filter 'mine'"):
                raise KeyError(task)
        if self._told_to("busy", task):
            raise OSError("busy")
        if self._told_to("die", task):
            os._exit(1)
        self._reach("writing")
        (self.folder / f"part_{task}").write_text(str(task))
        return 2 * served[2]

    def _reach(self, moment: str) -> None:
        """Says where this process is, and stays there if it is told to, once."""
        (self.folder / f"{moment}_{self.index}").write_text(str(os.getpid()))
        hold = self.folder / f"hold_{moment}_{self.index}_once"
        if hold.exists():
            hold.unlink()
            time.sleep(60)

    def _told_to(self, fault: str, task: int) -> bool:
        return told_to(self.folder / f"{fault}_at_{task}")
