"""The errors of the loop, in one tree. All of them survive pickling, so that they keep their type across processes.

`UserError` is for what the caller can fix (exit code 2); everything else is a fault of the run (exit code 1).
"""

from __future__ import annotations

from cluster.errors import FinalError
from loop.credentials import masked


def one_line(error: Exception) -> str:
    """The text of an error as one line, for errors of libraries that write several."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str) -> str:
    """`text` as one line that is safe on a terminal: escapes, control characters, changes of writing direction and halves of
    characters are spelled out (`\\x1b`). Credentials are masked."""
    text = masked(text)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class LoopError(Exception):
    """Base of all named errors of the loop."""

    exit_code = 1


class UserError(LoopError, ValueError):
    """The input cannot work. The text says what was given, what was expected and what to do."""

    exit_code = 2


class InterruptedRunError(LoopError):
    """The driver was told to stop, by Ctrl-C or SIGTERM."""

    exit_code = 130

    def __init__(self, run_dir: str, remedy: str = "") -> None:
        super().__init__(run_dir, remedy)
        self.run_dir, self.remedy = run_dir, remedy

    def __str__(self) -> str:
        return f"{self.run_dir} was interrupted; {self.remedy or f'continue it with `vigc resume {self.run_dir}`'}"


class StoreError(LoopError, FinalError):
    """The run folder is inconsistent, or an operation would make it so."""


class WriteError(StoreError):
    """A write failed because the disk is full, read-only, or gone. Earlier data are intact."""

    def __init__(self, path: str, reason: str, remedy: str = "continue with `vigc resume`") -> None:
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.reason}; free space or fix the cause, then {self.remedy}"


class PrunedCheckpointError(StoreError):
    """A checkpoint was deleted by the run's retention; the rest of its round is kept."""

    def __init__(self, path: str, reason: str, kept: str) -> None:
        super().__init__(path, reason, kept)
        self.path, self.reason, self.kept = path, reason, kept

    def __str__(self) -> str:
        return f"{self.path} was pruned: {self.reason}; kept are {self.kept}"


class NoReadableImageError(LoopError):
    """None of a round's images could be read, so there is nothing new to train on."""

    def __init__(self, round: int, num_images: int, example: str) -> None:
        super().__init__(round, num_images, example)
        self.round, self.num_images, self.example = round, num_images, example

    def __str__(self) -> str:
        return (
            f"round {self.round}: none of its {self.num_images} images could be read where the engines run, such as {self.example}; "
            "make the image set readable on every node, then continue with `vigc resume`, which tries these images again"
        )


class TeachingStoppedError(LoopError):
    """A teacher was stopped before it finished. What it has written is kept."""

    def __init__(self, folder: str, reason: str, exit_code: int = 1) -> None:
        super().__init__(folder, reason, exit_code)
        self.folder, self.reason, self.exit_code = folder, reason, exit_code

    def __str__(self) -> str:
        return f"{self.reason}; finished work is kept in {self.folder}; run the same command again to continue"


class ExportError(LoopError):
    """An export failed for a reason outside of its run. Nothing of it is left."""


class DamagedFileError(StoreError):
    """A file of the run is missing, truncated or altered."""

    def __init__(self, path: str, expected: str, found: str, remedy: str) -> None:
        super().__init__(path, expected, found, remedy)
        self.path, self.expected, self.found, self.remedy = path, expected, found, remedy

    def __str__(self) -> str:
        return f"{self.path} is damaged: expected {self.expected}, found {self.found}; {self.remedy}"


class IncompleteRoundError(StoreError):
    """Planned records of a round are missing or damaged. The round is not committed."""

    _MAX_NAMED = 5

    def __init__(self, round: int, num_shards: int, problems: list[str]) -> None:
        super().__init__(round, num_shards, problems)
        self.round, self.num_shards, self.problems = round, num_shards, problems

    def __str__(self) -> str:
        more = len(self.problems) - self._MAX_NAMED
        shown = "; ".join(self.problems[: self._MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
        return (
            f"round {self.round} is incomplete and is not committed: {len(self.problems)} of {self.num_shards} planned shards cannot be "
            f"used: {shown}; check the disk, then continue with `vigc resume`, which regenerates missing and damaged shards"
        )


class EmptyRoundError(LoopError):
    """A round has nothing to train on, and the config says to stop there."""

    def __init__(self, round: int, reason: str, advice: str, run_dir: str) -> None:
        super().__init__(round, reason, advice, run_dir)
        self.round, self.reason, self.advice, self.run_dir = round, reason, advice, run_dir

    def __str__(self) -> str:
        return (
            f"round {self.round} has nothing to train on: {self.reason}; {self.advice}; the records and their reasons are in "
            f"{self.run_dir}/rounds/{self.round:04d}/parts; start a new run with another config (on_empty_round: reject continues with "
            f"the next round instead)"
        )


class RunExistsError(UserError):
    """The folder for a new run already holds one."""

    def __init__(self, run_dir: str) -> None:
        super().__init__(run_dir)
        self.run_dir = run_dir

    def __str__(self) -> str:
        return f"{self.run_dir} already holds a run; continue it with `vigc resume {self.run_dir}` or choose another --run-dir"


class NoRunError(UserError):
    """There is no run where one was expected. `instead` says what is there, and which command continues it."""

    def __init__(self, run_dir: str, instead: str = "") -> None:
        super().__init__(run_dir, instead)
        self.run_dir, self.instead = run_dir, instead

    def __str__(self) -> str:
        if self.instead:
            return f"{self.run_dir} holds no run, but {self.instead}"
        return f"{self.run_dir} holds no run (no run.json); start one with `vigc run CONFIG --run-dir {self.run_dir}` or check the path"


class LockedError(StoreError, UserError):
    """Another driver holds the run, or has taken it over from this one."""

    exit_code = 2


class SchemaVersionError(UserError):
    """A file of the run was written in another version of its schema."""

    def __init__(self, path: str, found: object, expected: int) -> None:
        super().__init__(path, found, expected)
        self.path, self.found, self.expected = path, found, expected

    def __str__(self) -> str:
        return f"{self.path} has schema version {self.found}; this vigc-loop reads version {self.expected}; use the version that wrote it"
