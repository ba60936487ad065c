"""A filesystem after a power loss, as bad as POSIX allows it to be.

`Recorder` notes what this process does to the files under a folder: creations, renames, deletions, and what is made durable by
fsync. `crash_states` builds, for every moment in that sequence, folders that may be found after a power loss at that moment: a file
holds what was last fsynced of it; a name that was made, moved or removed may be so on the disk or not, each one for itself, until
its folder is fsynced.
"""

from __future__ import annotations

import os
import random
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class Node:
    """A file or a folder, whatever it is called."""

    is_folder: bool
    entries: dict[str, Node] = field(default_factory=dict)
    """Names in a folder that are on the disk for sure."""
    pending: list[tuple[str, Node | None]] = field(default_factory=list)
    """Names that were made (or removed: None) since."""
    data: bytes = b""
    """What was last fsynced of a file; the rest of it is lost."""


@dataclass
class Recorder:
    root: Path
    steps: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    """What was done, in order, with paths relative to the root."""
    _active: bool = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        fsync = os.fsync

        def recording_fsync(descriptor: int) -> None:
            fsync(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            self._note("fsync", path, None if is_folder else Path(path).read_bytes())

        os.fsync, self._active = recording_fsync, True
        try:
            yield
        finally:
            os.fsync, self._active = fsync, False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A hook for `sys.addaudithook`, called before each operation."""
        if not self._active:
            return
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self._note("create", arguments[0])
        elif event == "os.mkdir":
            self._note("mkdir", arguments[0])
        elif event == "os.rename":
            self._note("rename", arguments[0], arguments[1])
        elif event in ("os.remove", "os.rmdir"):
            folder = os.readlink(f"/proc/self/fd/{arguments[1]}") if arguments[1] != -1 else ""
            self._note("remove", os.path.join(folder, arguments[0]))

    def _note(self, verb: str, path: str | os.PathLike[str], *more: Any) -> None:
        if not Path(path).is_relative_to(self.root):
            return
        relative = Path(path).relative_to(self.root).as_posix()
        more = tuple(Path(each).relative_to(self.root).as_posix() if isinstance(each, str | os.PathLike) else each for each in more)
        self.steps.append((verb, (relative, *more)))


def install(recorder: Recorder) -> None:
    """For the rest of this process: audit hooks cannot be removed."""
    sys.addaudithook(recorder.audit)


class Disk:
    """The files of a recorder's root as far as a number of its steps has come."""

    def __init__(self, start: Path) -> None:
        self.root = _load(start)

    def apply(self, verb: str, path: str, *more: Any) -> None:
        folder, name = self._parent(path)
        if verb in ("create", "mkdir"):
            known = _now(folder).get(name)
            if known is None:
                folder.pending.append((name, Node(is_folder=verb == "mkdir")))
        elif verb == "remove":
            folder.pending.append((name, None))
        elif verb == "rename":
            node = _now(folder)[name]
            target, new_name = self._parent(more[0])
            folder.pending.append((name, None))
            target.pending.append((new_name, node))
        elif more[0] is None:
            node = self._find(path)
            node.entries, node.pending = _now(node), []
        else:
            self._find(path).data = more[0]

    def write(self, folder: Path, chance: random.Random | None, *, keep: bool) -> None:
        """A folder as a power loss may leave it: all that was not made durable kept or lost, or with `chance`, each for itself."""
        _write(self.root, folder, chance, keep)

    def _find(self, path: str) -> Node:
        node = self.root
        for name in Path(path).parts:
            node = _now(node)[name]
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        return self._find(Path(path).parent.as_posix()) if Path(path).parent != Path() else self.root, Path(path).name


def crash_states(start: Path, steps: list[tuple[str, tuple[Any, ...]]], scratch: Path, num_random: int = 3) -> Iterator[tuple[int, Path]]:
    """For every number of steps done, folders that a power loss at that moment may leave: yields (steps done, folder)."""
    disk, chance = Disk(start), random.Random(7)
    for done in range(len(steps) + 1):
        for variant in range(2 + num_random):
            folder = scratch / f"{done}-{variant}"
            disk.write(folder, chance if variant > 1 else None, keep=variant == 1)
            yield done, folder
        if done < len(steps):
            verb, arguments = steps[done]
            disk.apply(verb, *arguments)


def _now(folder: Node) -> dict[str, Node]:
    """The names in a folder as a running process sees them."""
    found = dict(folder.entries)
    for name, node in folder.pending:
        if node is None:
            found.pop(name, None)
        else:
            found[name] = node
    return found


def _load(path: Path) -> Node:
    if path.is_dir():
        return Node(is_folder=True, entries={child.name: _load(child) for child in path.iterdir()})
    return Node(is_folder=False, data=path.read_bytes())


def _write(node: Node, path: Path, chance: random.Random | None, keep: bool) -> None:
    if not node.is_folder:
        path.write_bytes(node.data)
        return
    path.mkdir(parents=True)
    kept = Node(is_folder=True, entries=dict(node.entries))
    kept.pending = [change for change in node.pending if (chance.random() < 0.5 if chance else keep)]
    for name, child in _now(kept).items():
        _write(child, path / name, chance, keep)
