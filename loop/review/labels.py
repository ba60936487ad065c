"""What people said about the records of a run: their labels, read back from MLflow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loop.credentials import masked
from loop.errors import UserError, one_line
from loop.monitors.mirror.review_queue import LABELS, REVIEW, RIGHT_ANSWER
from loop.monitors.mirror.traces import (
    REASON_KEY,
    RECORD_KEY,
    ROUND_KEY,
    RUN_KEY,
    STRATUM_KEY,
    STRATUM_SIZE_KEY,
    TRUTH,
    VERDICT_KEY,
)
from loop.monitors.tracking import CLIENT_ENVIRONMENT
from loop.monitors.ui import find_place
from loop.store.run_store import Store

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Trace
    from mlflow.tracking import MlflowClient

_PER_PAGE = 200
_PERSON = "HUMAN"
_MAX_REASON = 300
"""Characters of what MLflow says."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A record that MLflow shows, and what people said about it."""

    record_id: str
    round: int
    accepted: bool
    reason: str
    """The reason against it; empty if it was accepted."""
    stratum: str
    """What it was drawn from at random; empty if it stands for itself. See `loop.gallery.sampling.Draw`."""
    stratum_size: int
    label: str | None = None
    """What most people said, one of `LABELS`; None if nobody did, or as many said something else."""
    right_answer: str = ""
    """The newest answer that a person gave in place of a wrong one."""
    truth: str | None = None
    """What the program of an embedded world says, as a label."""


@dataclass
class Review:
    """The records of a run that MLflow shows."""

    records: list[Reviewed] = field(default_factory=list)
    people: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    """Labels that are none of `LABELS`, a line for each; they are left out."""
    num_disagreed: int = 0
    """Records on which as many people said one thing as another; they count as not labelled."""

    @property
    def labelled(self) -> list[Reviewed]:
        return [one for one in self.records if one.label is not None]


def read_review(store: Store) -> Review:
    """The records of a run that MLflow shows, and their labels. Waits a few seconds at most for a server that does not answer.

    Raises:
        UserError: the run is not tracked, MLflow does not answer, or it has no trace of the run.
    """
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    run_id, review = store.read_run().run_id, Review()
    try:
        uri, (experiment_id, _) = find_place(store)
        for trace in _traces(MlflowClient(uri), experiment_id, run_id):
            _add(review, trace)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow does not answer: {masked(one_line(error))[:_MAX_REASON]}; start its server, then try again") from error
    if not review.records:
        raise UserError(
            f"MLflow at {masked(uri)} has no trace of the run {run_id}: tracking.num_traces was 0, no round with records is mirrored yet, "
            "or this MLflow cannot keep traces; the tag vigc.traces of each round says which"
        )
    return review


def _traces(client: MlflowClient, experiment_id: str, run_id: str) -> Iterator[Trace]:
    token = None
    while True:
        page = client.search_traces(
            locations=[experiment_id], filter_string=f"metadata.`{RUN_KEY}` = '{run_id}'", max_results=_PER_PAGE, page_token=token,
            include_spans=False,
        )  # fmt: skip
        yield from page
        token = page.token
        if not token:
            return


def _add(review: Review, trace: Trace) -> None:
    found = [one for one in trace.info.assessments if one.valid is not False]
    said = _labels(review, trace.info.trace_metadata[RECORD_KEY], found)
    review.people |= set(said)
    label = most_said(list(said.values()))
    review.num_disagreed += bool(said) and label is None
    review.records.append(_reviewed(trace.info.trace_metadata, found, label))


def _labels(review: Review, record_id: str, assessments: Sequence[Assessment]) -> dict[str, str]:
    """The newest label of each person."""
    said: dict[str, str] = {}
    for one in _by_people(assessments, REVIEW):
        label = _label(_value(one))
        if label is None:
            expected = f"{', '.join(LABELS[:-1])} or {LABELS[-1]}"
            review.unknown.append(f"{record_id} has the label {_value(one)!r:.80} by {one.source.source_id}; expected {expected}")
        else:
            said[str(one.source.source_id)] = label
    return said


def _reviewed(metadata: Mapping[str, str], assessments: Sequence[Assessment], label: str | None) -> Reviewed:
    answers = [value.strip() for one in _by_people(assessments, RIGHT_ANSWER) if isinstance(value := _value(one), str)]
    truth = next((_value(one) for one in assessments if one.name == TRUTH and one.source.source_type != _PERSON), None)
    return Reviewed(
        metadata[RECORD_KEY], int(metadata[ROUND_KEY]), metadata[VERDICT_KEY] == "accepted", metadata.get(REASON_KEY, ""),
        metadata.get(STRATUM_KEY, ""), int(metadata[STRATUM_SIZE_KEY]), label, answers[-1] if answers else "", truth,
    )  # fmt: skip


def _by_people(assessments: Sequence[Assessment], name: str) -> list[Assessment]:
    """What people said under a name, the newest last."""
    found = [one for one in assessments if one.name == name and one.source.source_type == _PERSON]
    return sorted(found, key=lambda one: one.last_update_time_ms or 0)


def _value(one: Assessment) -> Any:
    content = one.feedback or one.expectation
    return None if content is None else content.value


def _label(value: Any) -> str | None:
    """A label as people may spell it."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    plain = " ".join(str(text).lower().replace("_", " ").split())
    return plain if plain in LABELS else None


def most_said(labels: Sequence[str]) -> str | None:
    """What most people said; None if nobody said anything, or as many said something else."""
    ranked = Counter(labels).most_common(2)
    return None if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]) else ranked[0][0]
