"""Export the data of a run in the formats of other tools, each with a dataset card that states its origin.

| format     | holds                                   | written as                                                             |
|------------|-----------------------------------------|------------------------------------------------------------------------|
| `llava`    | accepted records                        | a folder: `data.json` (LLaVA's conversations), `images/NAME`           |
| `vigc`     | accepted records                        | a folder: `data.json` (VIGC's fields of a record), `images/...`        |
| `sharegpt` | accepted records                        | a folder: `data.json`, `dataset_info.json` (LlamaFactory), `images/...` |
| `swift`    | accepted records                        | a folder: `data.jsonl` (ms-swift's messages), `images/...`             |
| `webdataset` | accepted records with their images    | a folder of tars: an image and a `.json` file of LLaVA's fields a record |
| `messages` | accepted records with their images      | Parquet that `datasets` and TRL read as chat messages and images       |
| `trl-dpo`  | pairs of the answers to accepted records that correction changed, with their images | Parquet that TRL's DPOTrainer reads |
| `parquet`  | all records, the rejected with reasons  | Parquet of `policies.records.RECORD_SCHEMA` and their images           |

Images keep their bytes and their names; those of sets without files are encoded as PNG. What is written does not depend on the number of
processes that read them. `datasets.load_dataset` shows pictures in every format: Parquet says which column they are, and
`metadata.jsonl` repeats the data in the form that it reads beside images.

The card is the folder's `README.md`, with the header that the Hugging Face hub reads. Parquet goes into a folder as `data.parquet`, or,
where `out` ends in `.parquet`, into that file, and its card beside it: `NAME.parquet` and `NAME.README.md`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal
from uuid import uuid4

import psutil

from actors.durable import fsync_tree
from actors.images import ImageSource
from loop.errors import UserError
from loop.export.card import card
from loop.export.pictures import Pictures
from loop.export.rows import Lineage, Rows
from loop.export.tables import DATA_PARQUET, write_messages, write_parquet, write_trl_dpo
from loop.export.writers import (
    DATA_JSON,
    DATA_JSONL,
    DATA_TARS,
    ExportCounts,
    ShardedWriter,
    Writer,
    write_llava,
    write_sharegpt,
    write_swift,
    write_vigc,
    write_webdataset,
)
from loop.store.commits import RoundCommit
from loop.store.run_store import Store

CARD = "README.md"
_MOST_WORKERS = 8
"""Processes by default, if there are as many cores: the one that writes does not keep up with more."""


class ExportFormat(StrEnum):
    LLAVA = "llava"
    VIGC = "vigc"
    SHAREGPT = "sharegpt"
    SWIFT = "swift"
    MESSAGES = "messages"
    PARQUET = "parquet"
    WEBDATASET = "webdataset"
    TRL_DPO = "trl-dpo"


_WRITERS: dict[ExportFormat, tuple[Writer, str]] = {
    ExportFormat.LLAVA: (write_llava, DATA_JSON),
    ExportFormat.VIGC: (write_vigc, DATA_JSON),
    ExportFormat.SHAREGPT: (write_sharegpt, DATA_JSON),
    ExportFormat.SWIFT: (write_swift, DATA_JSONL),
}
"""How a format of one data file is written, and its data file in a folder."""
_SHARDED_WRITERS: dict[ExportFormat, tuple[ShardedWriter, str]] = {
    ExportFormat.MESSAGES: (write_messages, DATA_PARQUET),
    ExportFormat.PARQUET: (write_parquet, DATA_PARQUET),
    ExportFormat.WEBDATASET: (write_webdataset, DATA_TARS),
    ExportFormat.TRL_DPO: (write_trl_dpo, DATA_PARQUET),
}
"""The same for formats that may have several."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    num_records: int
    path: Path
    card: Path
    bad_images: tuple[str, ...] = ()
    """One line per image that could not be read; its records are left out."""


def export(
    store: Store,
    rounds: Literal["all"] | int,
    format: ExportFormat | str,
    out: Path,
    images: ImageSource,
    image_id_of: Callable[[int, str], str] = lambda round_index, image_id: image_id,
    shard_size: int | None = None,
    workers: int | None = None,
) -> ExportReport:
    """Write the records of committed rounds, and their card, to `out`, atomically; at most `shard_size` records per file.

    `images` opens the ids that `image_id_of` returns for a round and an image id of its records; pass the latter if rounds draw on sets
    whose image ids may be equal. Many images are read in `workers` processes, by default one for each core, up to 8.

    Raises:
        UserError: `out` exists or cannot be written, the round is not committed, the format is unknown or cannot be cut into files, or
            there is nothing to write.
        DamagedFileError: a part of the run does not match its commit record.
        ExportError: a process that reads images died, or did not read them in time.
    """
    write, data_file = _writer(_known(format), shard_size)
    as_file = data_file == DATA_PARQUET and out.suffix == ".parquet"
    if as_file and shard_size is not None:
        raise UserError(f"--shard-size writes several files, and --out {out} is one; give a folder")
    commits = _chosen(store, rounds)
    card_path = out.with_suffix(f".{CARD}") if as_file else out / CARD
    if taken := next((path for path in (out, card_path) if path.exists()), None):
        raise UserError(f"{taken} exists; export never overwrites: choose another --out or remove it first")
    pictures, counts = Pictures(images), ExportCounts()
    lineage = Lineage(store.read_run(), commits, str(format))
    rows = Rows(store, lineage, images, image_id_of, pictures, workers or min(psutil.cpu_count() or 1, _MOST_WORKERS))

    def fill(data: Path, target: Path, shown_name: str) -> None:
        write(rows, data, counts)
        _refuse_nothing(counts, pictures, commits, store.uri, ExportFormat(format))
        target.write_text(card(lineage, counts, pictures, shown_name, is_file=as_file), encoding="utf-8")

    with whole(out) as tmp:
        if as_file:
            with whole(card_path) as tmp_card:  # the card appears before the data
                fill(tmp, tmp_card, out.name)
        else:
            tmp.mkdir()
            is_sharded = data_file == DATA_PARQUET and shard_size is not None
            shown = data_file.replace(".", "-*.") if is_sharded else data_file
            fill(tmp / DATA_PARQUET if data_file == DATA_PARQUET else tmp, tmp / CARD, shown)
    return ExportReport(counts.num_records, out, card_path, tuple(pictures.bad.values()))


def _refuse_nothing(counts: ExportCounts, pictures: Pictures, commits: Sequence[RoundCommit], uri: str, format: ExportFormat) -> None:
    if counts.num_records:
        return
    unreadable = f" ({len(pictures.bad)} images cannot be read, the first: {next(iter(pictures.bad.values()))})" if pictures.bad else ""
    nothing = f"no accepted records with readable images{unreadable}"
    if format == ExportFormat.PARQUET:
        nothing = "no records"
    elif format == ExportFormat.TRL_DPO:
        nothing = f"no pairs: correction changed the answers of {nothing}, or of none with the evidence that training.objective asks for"
    raise UserError(f"nothing to export: rounds {[commit.round for commit in commits]} of {uri} hold {nothing}")


def _writer(format: ExportFormat, shard_size: int | None) -> tuple[Writer, str]:
    """How to write a format, and its data file in a folder."""
    if format in _SHARDED_WRITERS:
        write, data_file = _SHARDED_WRITERS[format]
        return lambda rows, target, counts: write(rows, target, counts, shard_size), data_file
    if shard_size is not None:
        raise UserError(f"format {format} has one data file; --shard-size works with {', '.join(sorted(_SHARDED_WRITERS))}")
    return _WRITERS[format]


def _known(format: ExportFormat | str) -> ExportFormat:
    if format not in list(ExportFormat):
        raise UserError(f"unknown export format {format!r}; expected one of {[str(name) for name in ExportFormat]}")
    return ExportFormat(format)


def _chosen(store: Store, rounds: Literal["all"] | int) -> list[RoundCommit]:
    committed = store.committed_rounds()
    if not committed or rounds not in ("all", *committed):
        raise UserError(f"round {rounds} of {store.uri} is not committed; committed rounds are {committed}")
    return store.commits() if rounds == "all" else [store.read_commit(rounds)]


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A path beside `out` to write a file or folder at; it becomes `out` if the block succeeds and is deleted otherwise. A process that is
    killed leaves it behind, hidden and under a name that nothing reads."""
    tmp = out.with_name(f".{out.name}.{uuid4().hex}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield tmp
        fsync_tree(tmp)
        os.rename(tmp, out)
    except OSError as error:
        raise UserError(f"the export to {out} failed: {error}; choose an --out that you can write to") from error
    finally:
        if tmp.is_dir():
            shutil.rmtree(tmp)
        elif tmp.exists():
            tmp.unlink()
