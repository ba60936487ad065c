"""What MLflow shows of a round beyond its commit record: intervals of scores, the data sets, and where the candidate is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from loop.config.run_config import RunConfig
from loop.config.sets import LabelledSet
from loop.credentials import masked
from loop.errors import PrunedCheckpointError
from loop.store.commits import RoundCommit, RoundState, champion_commit, checkpoint_name
from loop.store.run_store import Store, checkpoint_path
from policies.metrics import mean_interval
from policies.scoring.answer_metrics import MEASURES

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_DIGEST_CHARACTERS = 16  # MLflow takes up to 36


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that a round uses or makes."""

    name: str
    context: str
    """What for: `seed data`, `generated`, `selected`, `held out`, `acceptance`, `training`, `evaluation`."""
    digest: str
    """Of the bytes, for what the run has made; of the definition in the config, for other sets."""
    source: str
    """A path or URI, or the kind of the set."""
    num_rows: int | None = None


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """See the module."""

    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of the champion's mean scores after the round, by the names that these have in the commit."""
    data: list[DataSet] = field(default_factory=list)
    candidate: str | None = None
    """Checkpoint of the model that the round has made; None if there is none, or none any more."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> RoundFacts:
        intervals = {name: (low, high) for name, (low, high) in document["intervals"].items()}
        return cls(intervals, [DataSet(**one) for one in document["data"]], document["candidate"])


def facts_of(config: RunConfig, store: Store, commit: RoundCommit, commits: Sequence[RoundCommit]) -> RoundFacts:
    """The facts of a round; `commits` are the rounds up to it."""
    predictions = store.read_part(champion_commit(commits).file("predictions.parquet"))
    return RoundFacts(intervals_of(predictions, commit.metrics), _data_sets(config, store, commit), _candidate(store, commit))


def intervals_of(predictions: pa.Table, metrics: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Intervals of the mean scores in `metrics` that `predictions` are behind."""
    found = {}
    scores = predictions["score" if "score" in predictions.column_names else "correct"].to_numpy().astype(float)
    names = predictions["set"].to_numpy()
    for name in dict.fromkeys(names.tolist()):
        section, _, of = name.partition("/")
        suffix = "" if section == "held_out" else "_acceptance"
        key = next((key for measure in MEASURES if (key := f"{measure}{suffix}/{of}") in metrics), None)
        known = scores[names == name]
        known = known[~np.isnan(known)]
        if key is not None and len(known):
            found[key] = mean_interval(known.tolist())
    return found


def dataset_inputs(data: Sequence[DataSet]) -> list[DatasetInput]:
    """Data sets as inputs of an MLflow run; nothing is read."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=one.name, digest=one.digest, source_type="local" if one.source.startswith("/") else "vigc",
                source=json.dumps({"uri": one.source}), profile=json.dumps({} if one.num_rows is None else {"num_rows": one.num_rows}),
            ),
            [InputTag("mlflow.data.context", one.context)],
        )
        for one in data
    ]  # fmt: skip


def _data_sets(config: RunConfig, store: Store, commit: RoundCommit) -> list[DataSet]:
    uri = masked(store.uri if "://" in store.uri else str(Path(store.uri).resolve()))
    found = [_defined("seed data", "seed data", config.seed_data)]
    found += [_defined(name, "held out", one) for name, one in config.held_out.items()]
    found += [_defined(name, "acceptance", one) for name, one in config.acceptance_sets.items()]
    parts = f"rounds/{commit.round:04d}/parts"
    records = [file for file in commit.files if file.path.startswith(f"{parts}/records-")]
    if records:
        digest = hashlib.sha256("".join(file.sha256 for file in records).encode()).hexdigest()[:_DIGEST_CHARACTERS]
        found.append(DataSet(f"round {commit.round} generated", "generated", digest, f"{uri}/{parts}", commit.counts.get("generated")))
    selected = next((file for file in commit.files if file.path == f"{parts}/selected.parquet"), None)
    if selected is not None:
        name, digest = f"round {commit.round} selected", selected.sha256[:_DIGEST_CHARACTERS]
        found.append(DataSet(name, "selected", digest, f"{uri}/{selected.path}", commit.counts.get("trained_on")))
    return found


def _defined(name: str, context: str, section: Any) -> DataSet:
    """A set that a section of the config defines."""
    document = section.model_dump(mode="json")
    num_rows = document.get("num_questions") or document.get("num_samples")
    return DataSet(name, context, digest_of_document(document), _source(document["data"]), num_rows)


def defined_set(name: str, context: str, data: LabelledSet, num_rows: int) -> DataSet:
    """So many samples of a labelled set, as the config defines it."""
    document = data.model_dump(mode="json")
    return DataSet(name, context, digest_of_document([document, num_rows]), _source(document), num_rows)


def digest_of_document(document: Any) -> str:
    """The digest of what defines a data set, as short as MLflow needs it."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _source(data: dict[str, Any]) -> str:
    return masked(next((str(data[key]) for key in ("path", "repo", "images") if data.get(key)), str(data["kind"])))


def _candidate(store: Store, commit: RoundCommit) -> str | None:
    if commit.state is RoundState.REJECTED and commit.candidate is None:
        return None
    path = checkpoint_path(checkpoint_name(commit.round))
    try:
        folder = store.checkpoint(path)
    except PrunedCheckpointError:
        return None
    return folder.resolve().as_uri() if isinstance(folder, Path) else masked(str(folder))
