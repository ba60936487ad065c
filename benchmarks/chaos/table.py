"""The tables of a chaos run, and its failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from benchmarks.chaos.results import Results
from benchmarks.chaos.world import MAX_IN_FLIGHT

_Events = list[dict[str, Any]]


def print_tables(console: Console, results: Results) -> None:
    """Print tables of driver kills by stage, of the actor matrix by cell, and of totals, and every failure in words."""
    if results["kill"]:
        console.print(_kills(results))
    if results["cell"]:
        console.print(_matrix(results["cell"]))
    console.print(_totals(results))
    for line in failures(results):
        console.print(line, style="red", highlight=False, markup=False)


def failures(results: Results) -> list[str]:
    """All violations of the guarantees; empty if there are none."""
    found = []
    for kind in ("undisturbed", "kill", "ending", "cell"):
        for number, event in enumerate(results[kind]):
            found += [f"{kind} {number} ({_name(event)}): {text}" for text in _faults(kind, event)]
    return found + [f"fuzz: {event['failed']} of {event['tests']} tests failed" for event in results["fuzz"] if event["failed"]]


def _faults(kind: str, event: dict[str, Any]) -> Iterable[str]:
    for name in ("leftovers", "scratch", "beyond_loopback", "finished_redone", "problems"):
        yield from (f"{name}: {text}" for text in event.get(name, []))
    if event.get("shards_redone", 0) > MAX_IN_FLIGHT:
        yield f"{event['shards_redone']} shards were made again; at most {MAX_IN_FLIGHT} were under way"
    if kind not in ("ending", "cell"):
        return
    if event["ending"] != "ended":
        yield f"it did not end: {event.get('titles')} {event.get('stacks', '')}"
    elif not event["digest_equal"]:
        yield f"exit code {event['exit_code']}, digest differs or is not there; {event.get('unreadable', '')} {event['stderr'][-600:]}"
    if event["lost"] or event["doubled"]:
        yield f"{event['lost']} records lost, {event['doubled']} doubled"
    if kind == "cell" and event["verdict"] not in ("survived", "bounded stop"):
        yield f"{event['verdict']}: {event['stderr'][-600:]}"


def _name(event: dict[str, Any]) -> str:
    if "cell" in event:
        return event["cell"]
    return f"campaign {event['campaign']}, {event.get('stage', event.get('ending'))}" if "campaign" in event else "alone"


def _table(title: str, first: str, *figures: str) -> Table:
    return Table(first, *(Column(figure, justify="right") for figure in figures), title=title)


def _kills(results: Results) -> Table:
    title = "Kills of the driver (SIGKILL), by where they hit"
    table = _table(title, "round and stage", "kills", "in a resume", "in the middle of a write", "shards redone, max")
    for (number, stage), events in _grouped(results["kill"], lambda event: (event["round"], event["stage"])):
        table.add_row(
            f"{number}  {stage}", str(len(events)), str(sum(event["session"] == "resume" for event in events)),
            str(sum(bool(event["half_written"]) for event in events)), str(max(event["shards_redone"] for event in events)),
        )  # fmt: skip
    return table


def _matrix(cells: _Events) -> Table:
    figures = ("tried", "survived", "bounded stop", "failed", "lost", "doubled", "seconds to the end, median", "max")
    table = _table("Faults in actors and services", "kind, moment, fault", *figures)
    for cell, events in _grouped(cells, lambda event: event["cell"]):
        verdicts = [event["verdict"] for event in events]
        survived, stopped = verdicts.count("survived"), verdicts.count("bounded stop")
        seconds = [event["after_fault_s"] for event in events]
        table.add_row(
            cell, str(len(events)), str(survived), str(stopped), str(len(events) - survived - stopped),
            str(sum(event["lost"] for event in events)), str(sum(event["doubled"] for event in events)),
            f"{median(seconds):.1f}", f"{max(seconds):.1f}",
        )  # fmt: skip
    return table


def _totals(results: Results) -> Table:
    kills, endings, cells = results["kill"], results["ending"], results["cell"]
    ended, everything = [*endings, *cells], [*kills, *endings, *cells]
    resumes = [event for event in [*kills, *endings] if event.get("session", event.get("command")) == "resume" and event["work_after_s"]]
    table = Table(title="Totals", show_header=False)
    verdicts = [event["verdict"] for event in cells]
    rows: dict[str, object] = {
        "faults tried": f"{len(kills) + len(cells)} ({len(kills)} kills of the driver, {len(cells)} in actors and services)",
        "runs that ended with the undisturbed digest": f"{sum(e['digest_equal'] for e in ended)} of {len(ended)}",
        "survived; bounded stops; failed cells": f"{verdicts.count('survived')}; {verdicts.count('bounded stop')}; "
        f"{len(verdicts) - verdicts.count('survived') - verdicts.count('bounded stop')}",
        "hangs": sum(event["ending"] == "hang" for event in ended),
        "records lost, doubled": f"{sum(e['lost'] for e in ended)}, {sum(e['doubled'] for e in ended)}",
        "finished shards made again": sum(len(event["finished_redone"]) for event in [*kills, *endings]),
        "shards under way made again, median, max": _spread([float(event["shards_redone"]) for event in kills]),
        "kills that left a step checkpoint to go on from": sum(bool(event["step_checkpoints"]) for event in kills),
        "seconds from `vigc resume` to work, median, max": _spread([event["work_after_s"] for event in resumes]),
        "the same of an undisturbed start": _spread([event["work_after_s"] for event in results["undisturbed"]]),
        "seconds of an undisturbed run": _spread([event["wall_s"] for event in results["undisturbed"]]),
        "processes and shared memory left behind": sum(len(event["leftovers"]) for event in everything),
        "temp folders left behind by runs that ended": sum(len(event.get("scratch", [])) for event in everything),
        "listening beyond loopback": sum(len(event["beyond_loopback"]) for event in everything),
        "fuzzed inputs": sum(event["inputs"] for event in results["fuzz"]),
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f}, {max(values):.1f} (of {len(values)})" if values else "-"


def _grouped(events: _Events, key: Callable[[dict[str, Any]], Any]) -> list[tuple[Any, _Events]]:
    groups: dict[Any, _Events] = {}
    for event in events:
        groups.setdefault(key(event), []).append(event)
    return sorted(groups.items(), key=lambda group: group[0])
