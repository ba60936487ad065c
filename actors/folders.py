"""Folders that actors read and write on whichever node they run.

A plain path means the same on every node: one machine, or a filesystem that all nodes share. Behind a URI there is no such path, so an
actor asks for a copy on its own node, and whoever writes a file uploads it. `loop.store` implements the protocols. All can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class RemoteFolder(Protocol):
    """A folder behind a URI whose files never change. Its text names it, the same on every node."""

    def local(self) -> Path:
        """A verified copy on this node, shared by all its processes."""
        ...

    def read(self, name: str, start: int, num_bytes: int) -> bytes:
        """A part of the file `name`, without a copy of the whole."""
        ...

    def names(self) -> Sequence[str]:
        """Relative paths of the files."""
        ...

    def subfolder(self, name: str) -> RemoteFolder:
        """A folder in it, which can be copied alone."""
        ...


Folder = Path | RemoteFolder


class RemoteOutput(Protocol):
    """Where one folder goes that an actor makes for a run behind a URI."""

    @property
    def name(self) -> str: ...

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty folder on this node, which is gone after the block."""
        ...

    def publish(self, scratch: Path) -> None:
        """Upload the content of `scratch`, which may be moved; it counts once all of it is there. Publishing again replaces it."""
        ...


class RemoteSteps(Protocol):
    """The unfinished work of one training behind a URI, in parts of a few files. A part counts once all of it is there."""

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty folder on this node, which is gone after the block."""
        ...

    def publish(self, scratch: Path, part: str, job: str) -> None:
        """Upload the files of `scratch` as `part`, such as `step-00000050/rank-0`, of a job; they are hashed here."""
        ...

    def parts(self) -> list[str]:
        """The parts that are there."""
        ...

    def fetch(self, part: str, job: str) -> Path | None:
        """A verified copy of a part on this node; `None` if it is missing, damaged, or of another job."""
        ...

    def drop_copies(self, part: str) -> None:
        """Delete this node's copies of a part, or of all parts below it."""
        ...

    def remove(self, part: str) -> None:
        """Delete a part, or all parts below it."""
        ...


def local_path(folder: str | Folder) -> Path:
    """The folder on this node."""
    return folder.local() if isinstance(folder, RemoteFolder) else Path(folder)


def subfolder(folder: Folder, name: str) -> Folder | None:
    """A folder in `folder`; `None` if there is none."""
    if isinstance(folder, Path):
        return folder / name if (folder / name).is_dir() else None
    return folder.subfolder(name) if any(one.startswith(f"{name}/") for one in folder.names()) else None
