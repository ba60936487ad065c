"""What of earlier rounds later ones need, and which checkpoints go."""

from __future__ import annotations

from collections.abc import Sequence

from loop.store.commits import FileEntry, RoundCommit, RoundState, champion_commit
from loop.store.run_store import Store


def needed_files(commits: Sequence[RoundCommit]) -> list[FileEntry]:
    """What the next round reads: the base and the champion checkpoint, the controls that were trained beside the champion and
    what their trainings say, what accepted rounds were trained on, and the predictions of seed model and champion."""
    if not commits:
        return []
    champion = champion_commit(commits)
    return [
        file
        for commit in commits
        for file in commit.files
        if file.path.startswith(tuple(f"{path}/" for path in _needed_checkpoints(commits)))
        or (commit.state is RoundState.ACCEPTED and file.path.endswith("/selected.parquet"))
        or (commit in (commits[0], champion) and file.path.endswith("/predictions.parquet"))
        or (commit is champion and "/parts/training" in file.path)
    ]


def _needed_checkpoints(commits: Sequence[RoundCommit]) -> set[str]:
    """The seed model's, and all that the champion's round made: a control goes on from the one trained beside the champion."""
    champion = champion_commit(commits)
    return {commits[0].champion_path, champion.champion_path, *champion.checkpoints}


def check_needed(store: Store, commits: Sequence[RoundCommit]) -> None:
    """Hold everything that the next round reads against its records, once per driver.

    Raises:
        DamagedFileError: the first file that is missing or altered.
    """
    store.check_files(needed_files(commits))
    for path in sorted(_needed_checkpoints(commits)) if commits else ():
        store.local_checkpoint(path)


def prunable(commits: Sequence[RoundCommit], keep_last: int | None, keep_every: int | None) -> list[str]:
    """Checkpoint folders that may go: not the base, the champion, the controls trained beside it, the last `keep_last` rounds' or every
    `keep_every`th round's."""
    if keep_last is None or not commits:
        return []
    kept = _needed_checkpoints(commits)
    older = commits[:-keep_last]
    candidates = [path for commit in older if not (keep_every and commit.round % keep_every == 0) for path in commit.checkpoints]
    return [path for path in candidates if path not in kept]


def prune(store: Store, commits: Sequence[RoundCommit], keep_last: int | None, keep_every: int | None) -> None:
    """Delete what is prunable. Call it after a commit: as at least the newest round is kept, a checkpoint goes only when the commit
    after its own is durable."""
    every = f" and of every {keep_every}th" if keep_every else ""
    reason = f"retention keeps the seed model, the champion, and the checkpoints of the last {keep_last} rounds{every}"
    for path in prunable(commits, keep_last, keep_every):
        store.prune_checkpoint(path, reason)
