"""The `vigc` command that reads people's labels back."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loop.errors import UserError, printable
from loop.monitors.terminal import print_loading
from loop.run.commands import RunDir
from loop.scoring.commands import AsJson

if TYPE_CHECKING:
    from loop.review.estimates import Agreement, Share
    from loop.review.labelled_data import Written
    from loop.review.labels import Review

commands = typer.Typer()

_MAX_EXAMPLES = 3


@commands.command()
def review(
    run_dir: RunDir,
    out: Annotated[
        str | None, typer.Option(help="folder for the labelled records with their images, which a config reads as llava_json")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the verdict and every filter with what people said in MLflow: precision and recall, with intervals."""
    print_loading(f"the labels of {run_dir}")
    from loop.config.run_config import stored_config
    from loop.review.estimates import agreements, weighed
    from loop.review.labelled_data import write_labelled
    from loop.review.labels import read_review
    from loop.setup.routing import record_images
    from loop.store.run_store import Store
    from policies.filtering.attribution import judges

    if out is not None and "://" in out:
        raise UserError(f"--out {out} is a URI, and labelled records are written to this machine; give a folder")
    store = Store.open(run_dir)
    found = read_review(store)
    chain = judges(list(dict.fromkeys(one.filter for commit in store.readable_commits()[0] for one in commit.filters)))
    measured = agreements(weighed(found.labelled), chain)
    written = None
    if out is not None:
        images_of = record_images(stored_config(store.read_run().config))
        written = write_labelled(store, found.labelled, images_of, Path(out))
    _warn(found, written)
    if as_json:
        typer.echo(json.dumps(_document(found, measured, written)))
    else:
        _print(Console(), found, measured)
        if written is not None:
            typer.echo(f"{written.num_written} records in {printable(str(out))}: {_counts(written.counts)}")


def _warn(found: Review, written: Written | None) -> None:
    lines = found.unknown[:_MAX_EXAMPLES]
    if more := len(found.unknown) - len(lines):
        lines.append(f"and {more} more unknown labels")
    if found.num_disagreed:
        lines.append(f"people disagree on {found.num_disagreed} records, which are left out")
    if written is not None and written.bad_images:
        lines.append(f"left out, since {len(written.bad_images)} images cannot be read, such as {written.bad_images[0]}")
    for line in lines:
        typer.echo(printable(line), err=True)


def _print(console: Console, found: Review, measured: list[Agreement]) -> None:
    from loop.review.estimates import num_unseen

    labels = Counter(one.label for one in found.labelled if one.label is not None)
    head = f"{len(found.labelled)} of {len(found.records)} records are labelled by {_people(len(found.people))}"
    console.print(f"{head}: {_counts(labels)}" if labels else head, highlight=False, soft_wrap=True)
    if not labels:
        return
    table = Table(title="against people, % [95 % interval] (labels)")
    for name in ("", "precision", "recall"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for one in measured:
        table.add_row(printable(one.name), _shown(one.precision), _shown(one.recall))
    console.print(table)
    if truth := _agreement_with_truth(found):
        console.print(truth, highlight=False, soft_wrap=True)
    if unseen := num_unseen(found.records):
        console.print(f"{unseen} records are of kinds that have no label yet, and count nowhere", highlight=False, soft_wrap=True)


def _people(num: int) -> str:
    return "1 person" if num == 1 else f"{num} people"


def _agreement_with_truth(found: Review) -> str:
    known = [one for one in found.labelled if one.truth is not None]
    same = sum((one.truth == one.label) or (one.truth == "wrong" and one.label == "bad question") for one in known)
    return f"people and the world's program agree on {same} of {len(known)} records" if known else ""


def _shown(one: Share) -> str:
    if one.value is None or one.low is None or one.high is None:
        return "-"
    return f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}] ({one.num_labels})"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _document(found: Review, measured: list[Agreement], written: Written | None) -> dict[str, Any]:
    return {
        "num_records": len(found.records),
        "num_labelled": len(found.labelled),
        "labels": Counter(one.label for one in found.labelled),
        "num_people": len(found.people),
        "num_disagreed": found.num_disagreed,
        "unknown_labels": found.unknown,
        "agreement": [asdict(one) for one in measured],
        "records": [asdict(one) for one in found.records],
        "written": written and dict(written.counts),
    }
