"""Files of earlier rounds that later rounds need, and checkpoints to delete."""

from __future__ import annotations

from collections.abc import Sequence

from loop.store.commits import MEAN_TEACHER, FileEntry, RoundCommit, RoundState, champion_commit, checkpoint_name, writer_commit
from loop.store.run_store import Store
from loop.store.selected import record_files


def needed_files(commits: Sequence[RoundCommit]) -> list[FileEntry]:
    """The files that the next round reads: the checkpoints of the seed model, the champion, its mean teacher and the controls trained
    beside it, the parts with their digests, the records of accepted rounds, and the predictions of seed model and champion."""
    if not commits:
        return []
    champion = champion_commit(commits)
    records = {file.path for commit in commits if commit.state is RoundState.ACCEPTED for file in record_files(commit)}
    return [
        file
        for commit in commits
        for file in commit.files
        if file.path.startswith(tuple(f"{path}/" for path in _needed_checkpoints(commits)))
        or file.path in records
        or (commit.state is RoundState.ACCEPTED and file.path.endswith("/selected.parquet"))
        or (commit in (commits[0], champion) and file.path.endswith("/predictions.parquet"))
        or (commit is champion and ("/parts/training" in file.path or f"/parts/{MEAN_TEACHER}." in file.path))
    ]


def _needed_checkpoints(commits: Sequence[RoundCommit]) -> set[str]:
    """The seed model's checkpoint and all of the champion's round: a control continues from the one trained beside the champion, and so
    does a mean teacher."""
    champion = champion_commit(commits)
    return {commits[0].champion_path, champion.champion_path, *champion.checkpoints}


def check_needed(store: Store, commits: Sequence[RoundCommit]) -> None:
    """Verify every file that the next round reads, once per driver.

    Raises:
        DamagedFileError: the first missing or altered file.
    """
    store.check_files(needed_files(commits))
    for path in sorted(_needed_checkpoints(commits)) if commits else ():
        store.checkpoint(path)


def prunable(commits: Sequence[RoundCommit], keep_last: int | None, keep_every: int | None, overlap: int = 0) -> list[str]:
    """Checkpoint folders that may be deleted. Kept are the seed model, the champion, its mean teacher, the controls trained beside it, the
    model that writes the records of the next round, the last `keep_last` rounds and every `keep_every`th round."""
    if keep_last is None or not commits:
        return []
    kept = {*_needed_checkpoints(commits), writer_commit(commits, len(commits), overlap).writer_path}
    older = commits[:-keep_last]
    candidates = [path for commit in older if not (keep_every and commit.round % keep_every == 0) for path in commit.checkpoints]
    return [path for path in candidates if path not in kept]


def kept_copies(commits: Sequence[RoundCommit], overlap: int = 0) -> list[str]:
    """Beginnings of the names of checkpoints of which nodes keep copies in the round after `commits`: those of the seed model, of the
    champion, of the model that writes the round's records, and, the last one, of the round itself."""
    needed = {0, len(commits)}
    if commits:
        needed |= {champion_commit(commits).round, writer_commit(commits, len(commits), overlap).round}
    return [checkpoint_name(round_index) for round_index in sorted(needed)]


def prune(store: Store, commits: Sequence[RoundCommit], keep_last: int | None, keep_every: int | None, overlap: int = 0) -> None:
    """Delete prunable checkpoints. Call it after a commit: at least the newest round is kept, so a checkpoint is only deleted once a
    later commit is durable."""
    every = f" and of every {keep_every}th" if keep_every else ""
    reason = f"retention keeps the seed model, the champion, and the checkpoints of the last {keep_last} rounds{every}"
    for path in prunable(commits, keep_last, keep_every, overlap):
        store.prune_checkpoint(path, reason)
