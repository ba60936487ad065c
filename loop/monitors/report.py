"""Report a run: the tables at the end of `vigc run`, and `vigc status` as a table or as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loop.errors import printable
from loop.store.commits import RoundCommit, RoundState
from policies.acceptance.paired import lead_of
from policies.acceptance.rules import points
from policies.scoring.answer_metrics import ACCURACY, MEASURES

MISSING = "\u2013"  # an en dash
TABLE_WIDTH = 100  # columns at most; a console may have fewer, as a log's has
MIN_COLUMN_WIDTH = 7
COLUMN_PADDING = 3

Column = tuple[str, Callable[[RoundCommit], str]]
"""A heading, and the cell of a round."""


def results_tables(commits: Sequence[RoundCommit], set_names: Sequence[str], width: int) -> list[Table]:
    """What each round generated, what each filter kept, the candidate's lead over champion and controls, and the champion's scores on
    the held-out sets `set_names`.

    Shares and scores are in percent. A number that was not measured is a dash. Columns that do not fit into
    `width` characters continue in another table.
    """
    commits = sorted(commits, key=lambda commit: commit.round)
    rounds = [commit for commit in commits if commit.state is not RoundState.BASELINE]
    tables = _tables("What each round wrote", _round_columns(rounds), rounds, width) if rounds else []
    filters = list(dict.fromkeys(count.filter for commit in rounds for count in commit.filters))
    if filters:
        generated = _count_column("generated", "generated")
        tables += _tables("Records kept by each filter", [generated, *map(_filter_column, filters)], rounds, width)
    return [*tables, *_candidate_tables(commits, width), *_champion_tables(commits, set_names, width)]


def print_results(console: Console, commits: Sequence[RoundCommit], set_names: Sequence[str]) -> None:
    """Print the tables of `results_tables`, and the findings of all rounds."""
    for table in results_tables(commits, set_names, _width_of(console)):
        console.print(table)
    _print_findings(console, commits)


def status_tables(run_id: str, state: str, commits: Sequence[RoundCommit], width: int) -> list[Table]:
    """A line per committed round, under the state of the run and its champion; then leads of candidates over champion and controls."""
    commits = sorted(commits, key=lambda commit: commit.round)
    champion = commits[-1].champion if commits else MISSING
    columns: list[Column] = [
        ("state", lambda commit: commit.state.value),
        _count_column("generated", "generated"),
        _count_column("kept", "accepted"),
        _count_column("trained on", "trained_on"),
        ("champion", lambda commit: commit.champion),
        ("seconds", _seconds),
        ("committed (UTC)", lambda commit: datetime.fromtimestamp(commit.committed_at, UTC).strftime("%m-%d %H:%M")),
    ]
    title = f"run {run_id}: {state}, champion {champion}"
    return [*_tables(title, columns, commits, width, {"state", "champion"}), *_candidate_tables(commits, width)]


def status_dict(run_id: str, state: str, commits: Sequence[RoundCommit]) -> dict[str, Any]:
    """The same for programs: plain JSON values (a number that is not finite is None)."""
    commits = sorted(commits, key=lambda commit: commit.round)
    return {
        "run_id": run_id,
        "state": state,
        "champion": commits[-1].champion if commits else None,
        "rounds": [_round_dict(commit) for commit in commits],
    }


def print_status(console: Console, run_id: str, state: str, commits: Sequence[RoundCommit]) -> None:
    """Print the tables of `status_tables`, and the findings of all rounds."""
    for table in status_tables(run_id, state, commits, _width_of(console)):
        console.print(table)
    _print_findings(console, commits)


def _print_findings(console: Console, commits: Sequence[RoundCommit]) -> None:
    """A line for each finding, under its round."""
    for commit in sorted(commits, key=lambda commit: commit.round):
        for finding in commit.reported:
            console.print(escape(printable(f"round {commit.round}: {finding.line}")), highlight=False, soft_wrap=True)


def _width_of(console: Console) -> int:
    return min(console.width, TABLE_WIDTH)


def _round_columns(commits: Sequence[RoundCommit]) -> list[Column]:
    stale: list[Column] = [("stale", _stale)] if any(_stale(commit) != MISSING for commit in commits) else []
    return [
        _count_column("generated", "generated"),
        *stale,
        _count_column("kept", "accepted"),
        _count_column("trained on", "trained_on"),
        _count_column("images set aside", "set_aside_images"),
        _percent_column("correct before, %", "correct_before"),
        _percent_column("correct after, %", "correct_after"),
        _percent_column("correct kept, %", "correct_kept"),
        ("seconds", _seconds),
    ]


def _candidate_tables(commits: Sequence[RoundCommit], width: int) -> list[Table]:
    """The lead of each candidate over the champion at that time and over the controls beside it, in points with intervals."""
    rounds = [commit for commit in commits if commit.decision is not None and "difference" in commit.decision.numbers]
    if not rounds:
        return []
    columns: list[Column] = [("over the champion", _over_champion), ("p", _number_column("p_value", "{:.2g}"))]
    if any("level" in _numbers_of(commit) for commit in rounds):
        columns += [("level", _number_column("level", "{:.2g}")), ("alpha spent", _number_column("alpha_spent", "{:.2g}"))]
    if any("hallucinated" in _numbers_of(commit) for commit in rounds):
        columns.append(("hallucinate, %", lambda commit: _percent(_numbers_of(commit).get("hallucinated"))))
    forgetting = {name for commit in rounds for name in _numbers_of(commit) if name.startswith("forgetting/")}
    columns += [(f"over the seed model, {name.rpartition('/')[2]}", _forgetting_column(name)) for name in sorted(forgetting)]
    controls = {name.split("/")[1]: None for commit in rounds for name in commit.metrics if name.startswith("control/")}
    columns += [(f"over {name}, held out", _control_column(name)) for name in controls]
    return _tables("What each candidate has over the others: points [interval]", columns, rounds, width)


def _numbers_of(commit: RoundCommit) -> Mapping[str, float]:
    return {} if commit.decision is None else commit.decision.numbers


def _over_champion(commit: RoundCommit) -> str:
    found = lead_of(_numbers_of(commit))
    return MISSING if found is None else points(found.difference, found.low, found.high)


def _forgetting_column(name: str) -> Callable[[RoundCommit], str]:
    kind, _, of = name.partition("/")
    return lambda commit: _points(_numbers_of(commit), name, f"{kind}_low/{of}", f"{kind}_high/{of}")


def _control_column(name: str) -> Callable[[RoundCommit], str]:
    key = f"control/{name}/pooled_difference"
    return lambda commit: _points(commit.metrics, key, f"{key}_low", f"{key}_high")


def _points(numbers: Mapping[str, float], *names: str) -> str:
    return points(*(numbers[name] for name in names)) if set(names) <= numbers.keys() else MISSING


def _number_column(name: str, form: str) -> Callable[[RoundCommit], str]:
    return lambda commit: form.format(_numbers_of(commit)[name]) if name in _numbers_of(commit) else MISSING


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _champion_tables(commits: Sequence[RoundCommit], set_names: Sequence[str], width: int) -> list[Table]:
    measures = {name: _measure_of(name, commits) for name in set_names}
    graded = sorted(set(measures.values()) - {ACCURACY})
    headings = {name: name if not graded or measure == ACCURACY else f"{name}, {measure}" for name, measure in measures.items()}
    columns = [_percent_column(headings[name], f"{measure}/{name}") for name, measure in measures.items()]
    gains = {headings[name]: _gain(commits, f"{measure}/{name}") for name, measure in measures.items()}
    columns.append(("outcome", _outcome))
    footer = {**gains, "outcome": "points over the seed model"}
    title = "What the champion can do after each round: " + ("mean score, 0 to 100" if graded else "accuracy, %")
    return _tables(title, columns, commits, width, {"outcome"}, footer)


def _measure_of(name: str, commits: Sequence[RoundCommit]) -> str:
    """What the metric of a held-out set measures, found by the name of its committed mean."""
    return next((one for one in MEASURES if any(f"{one}/{name}" in commit.metrics for commit in commits)), ACCURACY)


def _tables(
    title: str,
    columns: Sequence[Column],
    commits: Sequence[RoundCommit],
    width: int,
    left_aligned: Iterable[str] = (),
    last_row: Mapping[str, str] | None = None,
) -> list[Table]:
    """As many tables as are needed to stay within `width`."""
    chunks: list[list[Column]] = [[]]
    used = round_width = MIN_COLUMN_WIDTH + COLUMN_PADDING
    for column in columns:
        needed = max(MIN_COLUMN_WIDTH, _column_width(column, commits, left_aligned)) + COLUMN_PADDING
        if used + needed > width:
            chunks.append([])
            used = round_width
        chunks[-1].append(column)
        used += needed
    titles = [title, *[f"{title} (continued)"] * (len(chunks) - 1)]
    return [_table(title, chunk, commits, width, left_aligned, last_row) for title, chunk in zip(titles, chunks, strict=True)]


def _table(
    title: str,
    columns: Sequence[Column],
    commits: Sequence[RoundCommit],
    width: int,
    left_aligned: Iterable[str],
    last_row: Mapping[str, str] | None,
) -> Table:
    title = printable(title)
    min_width = min(len(title), width)  # a title is wrapped at the width of its table
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, min_width=min_width)
    table.add_column("round", justify="right")
    for column in columns:
        justify = "left" if column[0] in left_aligned else "right"
        needed = _column_width(column, commits, left_aligned)
        table.add_column(escape(printable(column[0]).replace("_", " ")), justify=justify, min_width=needed)
    for commit in commits:
        table.add_row(str(commit.round), *(escape(printable(cell(commit))) for _, cell in columns))
    if last_row is not None:
        table.add_section()
        table.add_row("gain", *(last_row[heading] for heading, _ in columns), style="bold")
    return table


def _column_width(column: Column, commits: Sequence[RoundCommit], left_aligned: Iterable[str]) -> int:
    """Headings and left-aligned texts wrap between words, so their longest word sets the width; numbers never wrap."""
    heading, cell = column
    cells = [printable(cell(commit)) for commit in commits]
    words = [word for text in cells for word in text.split()] if heading in left_aligned else cells
    return max(map(len, [*printable(heading).replace("_", " ").split(), *words]), default=0)


def _count_column(heading: str, count: str) -> Column:
    return heading, lambda commit: str(commit.counts[count]) if count in commit.counts else MISSING


def _filter_column(name: str) -> Column:
    def cell(commit: RoundCommit) -> str:
        return next((str(count.kept) for count in commit.filters if count.filter == name), MISSING)

    return name.rpartition(":")[2], cell


def _percent_column(heading: str, metric: str) -> Column:
    def cell(commit: RoundCommit) -> str:
        return _percent(_metric(commit, metric))

    return heading, cell


def _gain(commits: Sequence[RoundCommit], metric: str) -> str:
    """The champion's mean score now, less the seed model's, in points."""
    seed = next((commit for commit in commits if commit.state is RoundState.BASELINE), None)
    before = None if seed is None else _metric(seed, metric)
    after = _metric(commits[-1], metric) if commits else None
    return MISSING if before is None or after is None else f"{100 * (after - before):+.1f}"


def _outcome(commit: RoundCommit) -> str:
    if commit.state is RoundState.BASELINE:
        return "seed model"
    return commit.state.value if commit.decision is None else f"{commit.state.value}: {commit.decision.reason}"


def _stale(commit: RoundCommit) -> str:
    """How many records an older model than the champion wrote, and what became of them."""
    prefix = "stale_"
    found = [f"{count} {name.removeprefix(prefix)}" for name, count in commit.counts.items() if name.startswith(prefix)]
    return found[0] if found else MISSING


def _seconds(commit: RoundCommit) -> str:
    return f"{commit.stage_seconds['round']:.1f}" if "round" in commit.stage_seconds else MISSING


def _metric(commit: RoundCommit, name: str) -> float | None:
    value = commit.metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _round_dict(commit: RoundCommit) -> dict[str, Any]:
    return {
        **commit.model_dump(mode="json", include={"round", "state", "champion", "counts", "decision", "idle", "findings", "incidents"}),
        "accepted": commit.state is RoundState.ACCEPTED,
        "metrics": {name: _metric(commit, name) for name in commit.metrics},
    }
