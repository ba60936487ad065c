"""A gallery of a run's records with their images: a page per round and an index, which open from disk in any browser, without a network.

sampling      which records of a round are shown
samples       those records, with their pictures (`thumbnails`) and the words that a correction changed (`corrections`)
measures      the numbers of the run over its rounds; `charts` draws them
pages         HTML from `templates/`; `folder` puts it in place
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.images import ImageSource
from loop.errors import DamagedFileError, SchemaVersionError, UserError
from loop.gallery.charts import chart, lead_bars
from loop.gallery.folder import INDEX, page_name, replaced
from loop.gallery.measures import Measured, correctness, filter_shares, hallucination, held_out_scores, lead
from loop.gallery.pages import environment, write_page
from loop.gallery.samples import RoundSamples, read_samples
from loop.store.commits import RoundCommit, RoundState
from loop.store.reading import RunReader
from loop.store.selected import record_files

NUM_SAMPLES = 500
_NUM_PREVIEWS = 8
"""Pictures of a round on the index."""


@dataclass
class Report:
    """What was written."""

    index: Path
    num_shown: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Records shown and records in all, by round."""
    missing_pictures: list[str] = field(default_factory=list)
    """Why an image could not be read, one line for each."""
    problems: list[str] = field(default_factory=list)
    """Damaged parts of the run; what depends on them is left out."""


def write_report(
    reader: RunReader,
    images_of: Callable[[int], ImageSource],
    folder: Path,
    rounds: Sequence[int] | None = None,
    num_samples: int = NUM_SAMPLES,
    *,
    state: str = "",
    previews: dict[int, RoundSamples] | None = None,
) -> Report:
    """Write the pages of committed rounds, and the index, to `folder`, which then holds nothing else.

    Args:
        reader: the run. Its checkpoints are not read.
        images_of: the images that the records of a round are about, see `loop.setup.routing.record_images`.
        folder: a new one, or that of an earlier report, which is replaced.
        rounds: the rounds to show; all by default.
        num_samples: the most records of a round to show.
        state: of the run, as `loop.run.state.run_state` says; the index mentions it.
        previews: what the index shows of rounds whose pages are already elsewhere, by round; gets those of the rounds that are written.

    Raises:
        UserError: no round is committed, one of `rounds` is not or has no records, or the folder cannot be used.
        DamagedFileError: no commit record can be read.
    """
    commits, problems = reader.readable_commits()
    chosen = _chosen(reader, commits, rounds)
    report = Report(folder / INDEX, problems=problems)
    templates = environment()
    run = {"run": reader.read_run(), "state": state, "commits": commits}
    previews = {} if previews is None else previews
    shown = sorted({*previews, *(commit.round for commit in chosen)})
    with replaced(folder) as target:
        for commit in chosen:
            found = _read(reader, commit, images_of, num_samples, report)
            values = {"commit": commit, "shown_rounds": shown, "samples": found.samples, "found": found}
            write_page(templates, "round.html", target / page_name(commit.round), {**run, **values, "lead": lead(commit)})
            previews[commit.round] = _preview(found)
        ordered = {round: previews[round] for round in shown}
        write_page(templates, "index.html", target / INDEX, {**run, **_index(reader, commits, ordered, report)})
    return report


def rounds_with_pages(commits: Sequence[RoundCommit]) -> list[RoundCommit]:
    """Those of `commits` that a report has pages of."""
    return [commit for commit in commits if record_files(commit) or commit.state is not RoundState.BASELINE]


def preview_of(reader: RunReader, commit: RoundCommit, images: ImageSource) -> RoundSamples:
    """What the index shows of a round.

    Raises:
        DamagedFileError, SchemaVersionError: a part of the round is damaged, or of another version.
    """
    return _preview(read_samples(reader, commit, images, _NUM_PREVIEWS))


def _chosen(reader: RunReader, commits: Sequence[RoundCommit], rounds: Sequence[int] | None) -> list[RoundCommit]:
    """The committed rounds to show, those that wrote records by default."""
    if not commits:
        reader.commits()  # tells whether there are none, or a damaged one
        raise UserError(f"{reader.uri} has no committed round yet; a report shows committed rounds: wait for the first one")
    written = {commit.round: commit for commit in rounds_with_pages(commits)}
    for round in rounds or []:
        if round not in written:
            why = "is the seed model alone" if any(one.round == round for one in commits) else "is not committed"
            raise UserError(f"round {round} of {reader.uri} {why}; rounds with records are {list(written)}")
    return list(written.values()) if rounds is None else [written[round] for round in rounds]


def _read(
    reader: RunReader, commit: RoundCommit, images_of: Callable[[int], ImageSource], num_samples: int, report: Report
) -> RoundSamples:
    """The sample of a round, counted in the report; without records where a part of the round is damaged."""
    try:
        found = read_samples(reader, commit, images_of(commit.round), num_samples)
    except (DamagedFileError, SchemaVersionError) as error:  # the other rounds can still be shown
        report.problems.append(f"round {commit.round} is left out: {error}")
        return RoundSamples([], 0, str(error))
    report.num_shown[commit.round] = len(found.samples), found.num_records
    report.missing_pictures += found.problems
    return found


def _preview(found: RoundSamples) -> RoundSamples:
    """A few accepted records with pictures, evenly spread."""
    with_picture = [one for one in found.samples if one.picture.uri]
    best = [one for one in with_picture if one.record.accepted] or with_picture
    return RoundSamples(best[:: max(1, len(best) // _NUM_PREVIEWS)][:_NUM_PREVIEWS], found.num_records)


def _index(reader: RunReader, commits: Sequence[RoundCommit], previews: dict[int, RoundSamples], report: Report) -> dict[str, Any]:
    leads = [lead(commit) for commit in commits]
    by_round = [commit for commit in commits if commit.filters]

    def charts(measured: Sequence[Measured]) -> list[Any]:
        return [chart(one) for one in measured if one.series]

    return {
        "previews": previews,
        "totals": {
            **{name: sum(commit.counts.get(name, 0) for commit in commits) for name in ("generated", "accepted")},
            "champions": sum(commit.state is RoundState.ACCEPTED for commit in commits),
        },
        "leads": list(zip(leads, lead_bars(leads), strict=True)),
        "scores": charts(held_out_scores(reader, commits, report.problems)),
        "correctness": charts([correctness(commits)]),
        "hallucination": charts([hallucination(commits)]),
        "filters": filter_shares(by_round),
        "filter_rounds": [commit.round for commit in by_round],
        "problems": report.problems,
    }
