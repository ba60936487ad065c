"""Verify a run against its records, and compute the digest by which runs are compared: `vigc verify`."""

from __future__ import annotations

import hashlib
from functools import partial

from loop.errors import DamagedFileError, StoreError
from loop.store.commits import FileEntry
from loop.store.documents import REMEDY, CheckpointReceipt, PrunedCheckpoint, VerifyReport, canonical, describe, note_damage
from loop.store.run_store import Store


def verify(store: Store) -> VerifyReport:
    """Hold every committed file of a run against its record. Reads all of them; raises nothing for what it finds."""
    digest, num_files, num_bytes, problems = hashlib.sha256(), 0, 0, list[str]()
    note_damage(store.read_run, problems)
    pruned, num_pruned = _pruned_files(store, problems), 0
    rounds = store.committed_rounds()
    if rounds != list(range(len(rounds))):
        problems.append(f"committed rounds are {rounds}: there must be no gap, and round 0 must be there")
    for round in rounds:
        commit = note_damage(partial(store.read_commit, round), problems)
        if commit is not None:
            files = [file if file in pruned else _found(store, file, problems) for file in commit.files]
            present = [file for file in files if file not in pruned]
            num_files += len(present)
            num_bytes += sum(file.num_bytes for file in present)
            num_pruned += len(files) - len(present)
            for path in commit.checkpoints:
                if not any(file.path.startswith(path + "/") for file in pruned):
                    note_damage(partial(store.load, path + ".json", CheckpointReceipt), problems)
            digest.update(canonical(commit.model_copy(update={"files": files})))
    return VerifyReport(num_files, num_bytes, num_pruned, digest.hexdigest(), problems)


def _pruned_files(store: Store, problems: list[str]) -> list[FileEntry]:
    found = [note_damage(partial(store.load, path, PrunedCheckpoint), problems) for path in store.tombstones()]
    return [file for tombstone in found if tombstone is not None for file in tombstone.files]


def _found(store: Store, file: FileEntry, problems: list[str]) -> FileEntry:
    """The entry of a committed file as it is on disk; damage is added to `problems`."""
    try:
        found = store.storage.entry(file.path)
    except (OSError, StoreError) as error:
        problems.append(f"{file.path} is damaged: expected {describe(file)}, found no readable file ({error}); {REMEDY}")
        return FileEntry(path=file.path, num_bytes=0, sha256="")
    if found != file:
        problems.append(str(DamagedFileError(file.path, describe(file), describe(found), REMEDY)))
    return found
