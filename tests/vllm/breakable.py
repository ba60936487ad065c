"""An engine worker that can be made to end or to hang in the middle of a swap."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from actors.engines.base import Completion, Request, Sampling
from actors.worker import EngineWorker


class BreakableWorker(EngineWorker):
    """The real worker; between writing the weights and resetting the caches it sends itself the signal whose number it finds in
    `folder / "break_INDEX"`, once."""

    def __init__(self, index: int, folder: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._index = index
        self._folder = folder

    def start(self) -> None:
        super().start()
        engine: Any = self._running()
        reset_caches = engine._reset_caches

        def break_and_reset() -> None:
            mark = self._folder / f"break_{self._index}"
            if mark.exists():
                number = int(mark.read_text())
                mark.unlink()
                os.kill(os.getpid(), number)
            reset_caches()

        engine._reset_caches = break_and_reset

    def answer(self, asked: list[Request]) -> list[Completion]:
        """Two calls of the engine, as generation and correction are, with a swap queued behind them at most."""
        engine = self._serving()
        return [*engine.complete(asked, Sampling(24)), *engine.complete(asked, Sampling(24))]
