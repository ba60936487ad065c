"""The descriptions of runs in MLflow: short reports in Markdown on what was written, kept, gained and decided."""

from __future__ import annotations

from collections.abc import Sequence

from loop.errors import printable
from loop.monitors.mirror.facts import RoundFacts
from loop.store.commits import RoundCommit, RoundState
from policies.counts import rejections
from policies.scoring.answer_metrics import ACCURACY, MEASURES

_MAX_FINDINGS = 10


def round_note(commit: RoundCommit, facts: RoundFacts, before: RoundCommit | None) -> str:
    """The report on a round; `before` is the round before it."""
    if commit.state is RoundState.BASELINE:
        head = f"**Seed model**, weights `{commit.champion}`: the first champion, evaluated before anything is trained."
        return "\n\n".join(filter(None, (head, _score_table(commit, facts, None), _findings(commit))))
    reason = f": {commit.decision.reason}" if commit.decision is not None else ""
    head = f"**Round {commit.round}: the candidate is {commit.state.value}**{markdown_text(reason)}. The champion is `{commit.champion}`."
    if commit.candidate is None and commit.state is RoundState.REJECTED:
        head = f"**Round {commit.round}: nothing was trained**, since no record was kept. The champion is `{commit.champion}`."
    parts = (head, _written(commit), _filters(commit), _score_table(commit, facts, before), _time(commit), _findings(commit))
    return "\n\n".join(filter(None, parts))


def run_note(run_id: str, uri: str, commits: Sequence[RoundCommit], now: str) -> str:
    """The report on a run so far; `now` says what it does at present or how it has ended."""
    head = f"Run `{run_id}` in `{markdown_text(uri)}`: {markdown_text(now)}."
    if not commits:
        return f"{head} The seed model is being evaluated."
    last = commits[-1]
    num_accepted = sum(commit.state is RoundState.ACCEPTED for commit in commits)
    head += f" {num_accepted} of {len(commits) - 1} rounds improved the model; the champion is `{last.champion}`."
    names = _scores(last)
    rows = [
        [str(commit.round), commit.state.value, _count(commit, "generated"), _count(commit, "accepted")]
        + [_percent(commit.metrics.get(name)) for name in names]
        for commit in commits
    ]
    table = _table(["round", "outcome", "written", "kept", *map(_set_label, names)], rows)
    gains = ", ".join(f"{_set_label(name)} {_points(commits[0].metrics.get(name), last.metrics.get(name))}" for name in names)
    gained = f"Gain over the seed model in points: {gains}." if gains and len(commits) > 1 else ""
    decision = f"Last decision: {markdown_text(last.decision.reason)}." if last.decision is not None else ""
    return "\n\n".join(filter(None, (head, table, gained, decision, "Each round is a child run with its own report.")))


def training_note(run_id: str, uri: str, stages: Sequence[tuple[str, int, float, float]], now: str) -> str:
    """The report on a training; its stages are names, samples, final losses and seconds."""
    head = f"Training `{run_id}` in `{markdown_text(uri)}`: {markdown_text(now)}."
    rows = [[markdown_text(name), str(num_samples), f"{loss:.3f}", f"{seconds:.0f}"] for name, num_samples, loss, seconds in stages]
    table = _table(["stage", "samples", "final loss", "seconds"], rows) if rows else ""
    return "\n\n".join(filter(None, (head, table, "Each stage is a child run with its curves and its model.")))


def stage_note(name: str, num_samples: int, num_skipped: int, loss: float, seconds: float) -> str:
    """The report on a stage of a training."""
    skipped = f" {num_skipped} of them were skipped." if num_skipped else ""
    return f"**Stage {markdown_text(name)}** was trained on {num_samples} samples in {seconds:.0f} s, to a loss of {loss:.3f}.{skipped}"


def _written(commit: RoundCommit) -> str:
    counts = commit.counts
    written, kept = counts.get("generated", 0), counts.get("accepted", 0)
    share = f" ({kept / written:.0%})" if written else ""
    line = f"{written} records were written and {kept}{share} kept; {counts.get('trained_on', 0)} were trained on."
    if rejected := rejections(counts):
        line += " Rejected: " + ", ".join(f"{count} {name}" for name, count in rejected.items()) + "."
    shares = [f"{_percent(commit.metrics[f'correct_{name}'])} % {label}" for name, label in _CORRECT if f"correct_{name}" in commit.metrics]
    return line + (f" Correct answers: {', '.join(shares)}." if shares else "")


_CORRECT = (("before", "as generated"), ("after", "after correction"), ("kept", "among those kept"))


def _filters(commit: RoundCommit) -> str:
    rows = [[markdown_text(one.filter), str(one.seen), str(one.kept)] for one in commit.filters]
    return _table(["filter", "saw", "kept"], rows) if rows else ""


def _score_table(commit: RoundCommit, facts: RoundFacts, before: RoundCommit | None) -> str:
    rows = []
    for name in _scores(commit):
        low, high = facts.intervals.get(name, (None, None))
        interval = f" [{_percent(low)}, {_percent(high)}]" if low is not None else ""
        row = [_set_label(name), _percent(commit.metrics[name]) + interval]
        if before is not None:
            row[1:1] = [_percent(before.metrics.get(name)), _percent(commit.metrics.get(f"candidate_{name}"))]
        rows.append(row)
    heads = ["set, %", "champion, 95 % interval"] if before is None else ["set, %", "champion before", "candidate", "champion now"]
    return _table(heads, rows) if rows else ""


def _time(commit: RoundCommit) -> str:
    seconds = {name: value for name, value in commit.stage_seconds.items() if name != "round"}
    stages = ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in sorted(seconds.items(), key=lambda one: -one[1]))
    if "round" not in commit.stage_seconds:
        return ""
    return f"Time: {commit.stage_seconds['round']:.1f} s{f' ({stages})' if stages else ''}.{_idle(commit)}"


def _idle(commit: RoundCommit) -> str:
    shares = ", ".join(f"{who} {share:.0%}" for who, share in commit.idle.items())
    return f" Idle: {shares}." if shares else ""


def _findings(commit: RoundCommit) -> str:
    lines = [f"- {markdown_text(finding.line)}" for finding in commit.reported[:_MAX_FINDINGS]]
    more = len(commit.reported) - len(lines)
    return "\n".join(["Findings:", "", *lines, *([f"- and {more} more"] if more else [])]) if lines else ""


def _scores(commit: RoundCommit) -> list[str]:
    """The names of the champion's scores, held-out sets first."""
    measures = [*MEASURES, *(f"{one}_acceptance" for one in MEASURES)]
    return [name for measure in measures for name in commit.metrics if name.partition("/")[0] == measure]


def _set_label(name: str) -> str:
    measure, _, of = name.partition("/")
    kind = measure.removesuffix("_acceptance")
    details = ", ".join(filter(None, ("acceptance" if kind != measure else "", kind if kind != ACCURACY else "")))
    return markdown_text(f"{of} ({details})" if details else of)


def _count(commit: RoundCommit, name: str) -> str:
    return str(commit.counts[name]) if name in commit.counts else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _points(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{100 * (after - before):+.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Text of a model, a person or a policy: nothing in it is Markdown or HTML."""
    escaped = printable(text)
    for mark in "\\`*_[]<>|#":
        escaped = escaped.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return escaped
