"""Rejects accepted records that repeat others: of the round, of what earlier rounds were trained on, or of the seed data.

The order of precedence is seed data, earlier rounds, then the round in the order of its records: the first one stays. Of all texts only
the keys are in memory. The texts of candidates are read part by part, and their shingles are in a temporary file that is mapped into
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import ENOSPC
from tempfile import TemporaryFile, gettempdir
from typing import IO

import numpy as np
import pyarrow as pa

from loop.config.cleaning_config import DeduplicationConfig
from loop.errors import WriteError
from loop.run.contents import Run
from loop.run.stages.known_texts import KnownTexts, RoundTexts
from loop.run.stages.records import still_whole
from loop.setup.overlaps import image_locations
from loop.store.commits import Finding, RoundState
from loop.store.documents import PartReceipt
from loop.store.duplicates import DUPLICATES, SCHEMA
from loop.store.selected import SelectedRows, accepted_rows, committed_rows
from policies.counts import RecordCounts
from policies.filtering.near_duplicates import MOST_NEIGHBOURS, SKETCH_WORDS, DuplicateSearch, ShingleSets, TextKeys, TextSimilarity
from policies.records import Reason

STAGE = "deduplication"
"""Name in the table of filters and of the stage."""
_NUM_PARTLY_COMPARED = "num_partly_compared"


def deduplicate(run: Run, index: int, parts: Sequence[PartReceipt]) -> PartReceipt | None:
    """Part `duplicates` of a round whose parts of records are `parts`; None if the config does not look for duplicates. What it changes in
    the counts of the round, and its line in the table of filters, are in its receipt, as in those of `parts`.

    Raises:
        IncompleteRoundError: a part of the round no longer matches its receipt.
        DamagedFileError: a part of an earlier round is missing or altered.
    """
    config = run.config.deduplication
    if config is None:
        return None
    done = run.store.finished_part(index, DUPLICATES)
    if done is None:
        with run.progress.stage(STAGE), still_whole(index, parts):
            done = _written(run, config, index, accepted_rows(run.store, parts))
    return done


def partly_compared(part: PartReceipt | None) -> list[Finding]:
    """A finding if records have keys that too many others share."""
    num = 0 if part is None else part.extra[_NUM_PARTLY_COMPARED]
    if not num:
        return []
    message = (
        f"records share most of their keys with so many others that they were compared with the {2 * MOST_NEIGHBOURS} most similar ones "
        "only, and near duplicates may remain: raise deduplication.shingle_words"
    )
    return [Finding(kind="partly_compared", count=num, message=message)]


def _written(run: Run, config: DeduplicationConfig, index: int, accepted: SelectedRows) -> PartReceipt:
    known = _known(run, config)
    new = _round_texts(run, index, accepted)
    search, exact = _searched(config, known, new)
    first_new = sum(map(len, known))
    repeated = np.flatnonzero(~search.is_kept)
    places = accepted.table.take(pa.array(repeated - first_new))
    reasons = np.where(np.isin(repeated, exact), Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE)
    names = _names([*known, new], search.repeats[repeated])
    table = pa.Table.from_arrays(
        [places["part"], places["row"], pa.array(reasons.tolist(), pa.string()), pa.array(names, pa.string())], schema=SCHEMA
    )
    extra = {
        "filters": [[STAGE, len(new), len(new) - len(repeated)]],
        "counts": _change(new, repeated - first_new, reasons).stored,
        _NUM_PARTLY_COMPARED: search.num_partly_compared,
    }
    return run.store.write_part(index, DUPLICATES, table, extra)


def _known(run: Run, config: DeduplicationConfig) -> list[KnownTexts]:
    """What was trained on before the round, oldest first."""
    found: list[KnownTexts] = [run.seed_texts] if "seed_data" in config.across else []
    if "earlier_rounds" in config.across:
        accepted = [commit for commit in run.commits if commit.state is RoundState.ACCEPTED]
        found += [_round_texts(run, commit.round, committed_rows(run.store, commit)) for commit in accepted]
    return found


def _round_texts(run: Run, index: int, rows: SelectedRows) -> RoundTexts:
    """The texts of rows of round `index`."""
    number = run.policies.schedule.image_set(index, len(run.config.image_sets))
    return RoundTexts(rows, image_locations(run.config.image_sets[number]))


def _searched(config: DeduplicationConfig, known: Sequence[KnownTexts], new: KnownTexts) -> tuple[DuplicateSearch, np.ndarray]:
    """A finished search over all texts, and which of them are exact duplicates."""
    similarity, origins = config.similarity, [*known, new]
    keys, images = _collected(similarity, origins)
    scopes = images if config.scope == "image" else np.zeros_like(images)
    search = DuplicateSearch(keys, scopes, sum(map(len, known)), among_new="round" in config.across)
    exact = search.exact()
    with _shingles(similarity, origins, search.candidates()) as sets:
        search.near(sets, similarity.threshold)
    return search, exact


def _collected(similarity: TextSimilarity, origins: Sequence[KnownTexts]) -> tuple[TextKeys, np.ndarray]:
    """The keys of all texts, and their images. The arrays are filled piece by piece, so that nothing is held twice."""
    num = sum(map(len, origins))
    texts, bands = np.empty(num, dtype=np.uint64), np.empty((num, similarity.bands[0]), dtype=np.uint32)
    images = np.empty(num, dtype=np.uint64)
    start = 0
    for origin in origins:
        for keys, found in origin.keyed():
            end = start + len(found)
            texts[start:end], bands[start:end], images[start:end] = keys.texts, keys.bands, found
            start = end
    assert start == num, f"{start} keys of {num} texts"
    return TextKeys(texts, bands), images


@contextmanager
def _shingles(similarity: TextSimilarity, origins: Sequence[KnownTexts], wanted: np.ndarray) -> Iterator[ShingleSets]:
    """The shingles of the wanted texts, of which there may be more than fit into memory."""
    sizes, sketches = np.zeros(len(wanted), dtype=np.int64), np.zeros((len(wanted), SKETCH_WORDS), dtype=np.uint64)
    rows, done = np.flatnonzero(wanted), 0
    with TemporaryFile(buffering=0) as file:  # closing a buffered one would fail again where the disk is full
        for table in _read(origins, ("question", "answer"), rows):
            pairs = zip(table["question"].to_pylist(), table["answer"].to_pylist(), strict=True)
            sets = similarity.sets(f"{question} {answer}" for question, answer in pairs)
            _append(file, sets.hashes)
            found = rows[done : done + table.num_rows]
            sizes[found], sketches[found] = sets.sizes, sets.sketches
            done += table.num_rows
        hashes = np.memmap(file, dtype=np.uint64, mode="r") if done else np.zeros(0, dtype=np.uint64)
        yield ShingleSets(hashes, sizes, sketches)


def _append(file: IO[bytes], hashes: np.ndarray) -> None:
    data = hashes.tobytes()
    try:
        if file.write(data) < len(data):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
    except OSError as error:
        raise WriteError(f"a temporary file in {gettempdir()}", error.strerror or str(error)) from error


def _read(origins: Sequence[KnownTexts], columns: Sequence[str], rows: np.ndarray) -> Iterator[pa.Table]:
    """Columns of ascending, distinct rows, numbered through all origins."""
    start = 0
    for origin in origins:
        end = start + len(origin)
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]
        if len(inside):
            yield from origin.read(columns, inside - start)
        start = end


def _names(origins: Sequence[KnownTexts], rows: np.ndarray) -> list[str]:
    """What texts are called, in any order."""
    distinct, numbers = np.unique(rows, return_inverse=True)
    names = [name for table in _read(origins, ("record_id",), distinct) for name in table["record_id"].to_pylist()]
    return [names[number] for number in numbers.tolist()]


def _change(new: KnownTexts, rows: np.ndarray, reasons: np.ndarray) -> RecordCounts:
    """What the rejection of rows of the round adds to its counts."""
    names, numbers = np.unique(reasons.astype(str), return_counts=True)
    verdicts = [verdict for table in _read([new], ("answer_correct",), rows) for verdict in table["answer_correct"].to_pylist()]
    known = [verdict for verdict in verdicts if verdict is not None]
    return RecordCounts(
        accepted=-len(rows),
        rejected=dict(zip(names.tolist(), numbers.tolist(), strict=True)),
        right={"correct_kept": -sum(known)},
        judged={"correct_kept": -len(known)},
    )
