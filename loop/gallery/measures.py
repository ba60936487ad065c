"""What the loop gained, decided and kept, round by round: the numbers behind the charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loop.errors import DamagedFileError, SchemaVersionError
from loop.store.commits import RoundCommit, RoundState
from loop.store.reading import RunReader
from policies.acceptance.paired import Lead, lead_of
from policies.metrics import mean_interval
from policies.records import RecordSchemaError
from policies.scoring.answer_metrics import MEASURES
from policies.scoring.predictions import from_table

_PREDICTIONS = "predictions.parquet"
_CORRECTNESS = {"correct_before": "as generated", "correct_after": "as corrected", "correct_kept": "as kept"}
_HALLUCINATED = {"hallucinated": "candidate", "hallucinated_champion": "champion"}


@dataclass(frozen=True, slots=True)
class Point:
    """A number of a round, in shares (0..1); `low` and `high` bound its 95 % interval, if there is one."""

    round: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """The numbers of one kind over the rounds."""

    name: str
    points: list[Point]
    is_line: bool = True
    """Whether the points belong together, as those of successive champions; rejected candidates are marks of their own."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A chart's content."""

    title: str
    series: list[Series]
    note: str = ""


def held_out_scores(reader: RunReader, commits: Sequence[RoundCommit], problems: list[str]) -> list[Measured]:
    """The champion's mean score on each held-out set after every round, with intervals over its questions, and rejected candidates.

    An interval is Wilson's where answers are right or wrong, and that of a normal mean where scores are graded. Damaged predictions of a
    round go to `problems`; its intervals are left out.
    """
    names = sorted({name for commit in commits for name in commit.metrics if name.partition("/")[0] in MEASURES})
    scores = {commit.round: _scores(reader, commit, problems) for commit in commits}
    made_in = {commit.champion: commit.round for commit in commits if commit.state is not RoundState.REJECTED}
    return [_held_out(name, commits, scores, made_in) for name in names]


def _held_out(
    metric: str, commits: Sequence[RoundCommit], scores: Mapping[int, Mapping[str, list[float]]], made_in: Mapping[str, int]
) -> Measured:
    """The scores of one held-out set, given the answers of each round's candidate and the round that made each champion."""
    measure, _, name = metric.partition("/")
    champions, rejected = [], []
    for commit in commits:
        if metric in commit.metrics:
            answered = scores.get(made_in.get(commit.champion, -1), {}).get(f"held_out/{name}", [])
            champions.append(_point(commit.round, commit.metrics[metric], answered))
        if commit.state is RoundState.REJECTED and f"candidate_{metric}" in commit.metrics:
            answered = scores[commit.round].get(f"held_out/{name}", [])
            rejected.append(_point(commit.round, commit.metrics[f"candidate_{metric}"], answered))
    series = [Series("champion", _finite(champions)), Series("rejected candidate", _finite(rejected), is_line=False)]
    return Measured(name, [one for one in series if one.points], measure)


def _scores(reader: RunReader, commit: RoundCommit, problems: list[str]) -> dict[str, list[float]]:
    """The scores of the round's candidate (of the seed model in the first) by set, without those that a judge left open."""
    file = next((file for file in commit.files if file.path.endswith(f"/{_PREDICTIONS}")), None)
    if file is None:
        return {}
    try:
        predictions, _ = from_table(reader.read_part(file))
    except (DamagedFileError, SchemaVersionError, RecordSchemaError) as error:
        problems.append(f"{file.path}: {error}" if isinstance(error, RecordSchemaError) else str(error))
        return {}
    return {name: [one.score for one in given if one.score is not None] for name, given in predictions.items()}


def _point(round: int, mean: float, scores: Sequence[float]) -> Point:
    return Point(round, mean, *mean_interval(scores)) if scores else Point(round, mean)


def correctness(commits: Sequence[RoundCommit]) -> Measured:
    """Shares of right answers as generated, as corrected and among those kept, where the truth is known."""
    return Measured("right answers", [one for name, label in _CORRECTNESS.items() if (one := _series(label, commits, name)).points])


def _series(label: str, commits: Sequence[RoundCommit], metric: str) -> Series:
    return Series(label, _finite([Point(commit.round, commit.metrics[metric]) for commit in commits if metric in commit.metrics]))


def hallucination(commits: Sequence[RoundCommit]) -> Measured:
    """Shares of answers that name something which is not in the image: of each candidate, and of the champion it was compared with."""
    series = []
    for name, label in _HALLUCINATED.items():
        numbers = [(commit.round, commit.decision.numbers) for commit in commits if commit.decision is not None]
        series.append(Series(label, _finite([Point(round, found[name]) for round, found in numbers if name in found])))
    return Measured("hallucinating answers", [one for one in series if one.points])


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]


@dataclass(frozen=True, slots=True)
class FilterShares:
    """What a filter kept of the records that it saw, by round; None where it was not part of the round."""

    name: str
    shares: list[float | None]


def filter_shares(commits: Sequence[RoundCommit]) -> list[FilterShares]:
    """The filters in the order of their chain."""
    counts = [{count.filter: count for count in commit.filters} for commit in commits]
    names = dict.fromkeys(count.filter for commit in commits for count in commit.filters)
    shares = {name: [of[name].kept / of[name].seen if name in of and of[name].seen else None for of in counts] for name in names}
    return [FilterShares(name.rpartition(":")[2], found) for name, found in shares.items()]


def lead(commit: RoundCommit) -> Lead | None:
    """The lead of the round's candidate; None if there was no candidate."""
    return None if commit.decision is None else lead_of(commit.decision.numbers)
