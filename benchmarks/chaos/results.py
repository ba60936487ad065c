"""Results of campaigns: stored after every fault, so that an interruption loses nothing, and merged from several files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.common import write_results

KINDS = ("undisturbed", "kill", "ending", "cell", "fuzz")


class Results:
    """Events by kind, in a JSON file that is replaced atomically after each event."""

    def __init__(self, path: Path | None, events: dict[str, list[dict[str, Any]]] | None = None) -> None:
        self._path = path
        self._events = {kind: list((events or {}).get(kind, [])) for kind in KINDS}

    @classmethod
    def read(cls, paths: list[Path]) -> Results:
        """The events of several files, in the given order."""
        merged = cls(None)
        for path in paths:
            for kind, events in json.loads(path.read_text()).items():
                merged._events[kind] += events
        return merged

    def __getitem__(self, kind: str) -> list[dict[str, Any]]:
        return self._events[kind]

    def record(self, kind: str, event: dict[str, Any]) -> None:
        self._events[kind].append(event)
        if self._path is not None:
            self.write(self._path)

    def write(self, path: Path) -> None:
        tmp = path.with_name(f"{path.name}.tmp")
        write_results(tmp, self._events)
        os.replace(tmp, path)
