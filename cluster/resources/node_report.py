"""Every node reports what has to be the same on all of them: versions, clock, and the files that actors read."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import short_message
from cluster.resources.nodes import LiveNodes

MAX_CLOCK_S = 60.0
"""A clock that is off by more is refused. Object stores refuse requests signed a quarter of an hour off; leases do not compare clocks."""

_PACKAGES = ("torch", "transformers", "deepspeed")
_OURS = ("actors", "cluster", "loop", "policies")
_SOURCE = "vigc-loop's source"
_REMEDIES = {_SOURCE: "update it there, or submit the run with `--working-dir .`"}
_NUM_NAMED = 3

Visit = Callable[[str], str]
"""What a node does in the run folder, given its id. Returns what is wrong, or an empty text."""


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself."""

    versions: dict[str, str]
    unix_s: float
    """Its clock."""
    absent: tuple[str, ...]
    """Paths that cannot be read there."""
    run_folder: str
    """What is wrong with the run folder there; empty if nothing is."""


@dataclass(frozen=True)
class Answer:
    """What came of asking a node. The driver's clock was between `asked_at` and `answered_at` when the node read its own."""

    node: str
    """Address and name of the host."""
    report: NodeReport | None
    error: str
    """Why there is no report."""
    asked_at: float
    answered_at: float


def reported(node_id: str, paths: Sequence[str], visit: Visit) -> NodeReport:
    """The report of the machine that this process is on. `paths`: files and folders to look for."""
    absent = tuple(path for path in paths if not os.access(path, os.R_OK))
    return NodeReport(versions(), time.time(), absent, visit(node_id))


def versions() -> dict[str, str]:
    """Versions of what all nodes must have alike. Without a build's suffix (`+cpu`), as nodes with GPUs have builds of their own."""
    ours = {"Python": platform.python_version(), "Ray": ray.__version__, _SOURCE: _source_digest()}
    return ours | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "(not installed)"


@cache
def _source_digest() -> str:
    """A digest of this project's modules: checkouts of different commits have the same version."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for folder in _OURS for path in (root / folder).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def ask_nodes(paths: Sequence[str], visit: Visit, timeout_s: float) -> list[Answer]:
    """Ask all nodes that actors can run on, side by side, within `timeout_s` seconds. A node that is lost meanwhile is left out."""
    nodes = [node for node in ray.nodes() if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))]
    ask, asked_at = ray.remote(num_cpus=0, max_retries=1)(reported), time.time()
    refs = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(node["NodeID"], paths, visit)
        for node in nodes
    ]
    answered_at: dict[Any, float] = {}
    left, deadline = list(refs), time.monotonic() + timeout_s
    while left and time.monotonic() < deadline:
        done, left = ray.wait(left, timeout=max(0.0, deadline - time.monotonic()))
        answered_at |= dict.fromkeys(done, time.time())
    alive = LiveNodes()
    answers = [_answer(node, ref, asked_at, answered_at.get(ref, time.time()), timeout_s) for node, ref in zip(nodes, refs, strict=True)]
    return [answer for answer, node in zip(answers, nodes, strict=True) if answer.report is not None or alive.has(node["NodeID"])]


def _answer(node: dict[str, Any], ref: ray.ObjectRef, asked_at: float, answered_at: float, timeout_s: float) -> Answer:
    name = f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
    try:
        return Answer(name, ray.get(ref, timeout=0), "", asked_at, answered_at)
    except GetTimeoutError:
        ray.cancel(ref)
        error = f"did not answer within {timeout_s:g} s; look at `ray status` and its logs, or take it out of the cluster"
    except RayError as failure:
        error = f"cannot run this project: {short_message(failure)}; install it there, or submit the run with `--working-dir .`"
    return Answer(name, None, error, asked_at, answered_at)


def problems(answers: Sequence[Answer], here: Mapping[str, str]) -> list[str]:
    """What differs on nodes from the driver, whose versions are `here`, and what to do: one line each, nodes with the same problem
    together. Empty if nothing does."""
    nodes: dict[str, list[str]] = {}
    for answer in answers:
        for problem in _problems_of(answer, here):
            nodes.setdefault(problem, []).append(answer.node)
    return [f"{_named(names)}: {problem}" for problem, names in nodes.items()]


def _problems_of(answer: Answer, here: Mapping[str, str]) -> Iterator[str]:
    report = answer.report
    if report is None:
        yield answer.error
        return
    yield from differences(report, here)
    early, late = answer.asked_at - report.unix_s, report.unix_s - answer.answered_at
    if max(early, late) > MAX_CLOCK_S:
        offset = f"{max(early, late):.0f} s {'behind' if early > late else 'ahead of'}"
        yield f"its clock is {offset} the driver's, and object stores refuse requests of such a clock; synchronise them (chrony, ntpd)"


def differences(report: NodeReport, here: Mapping[str, str]) -> Iterator[str]:
    """What differs on a node from the driver, whose versions are `here`, apart from its clock."""
    for name, found in report.versions.items():
        if found != here.get(name):
            remedy = _REMEDIES.get(name, "install the same version on all nodes")
            yield f"{name} is {found} there, and {here.get(name)} for the driver; {remedy}"
    for path in report.absent:
        yield f"{path} is not there or cannot be read; put it on every node at the same path, or on a folder that all share"
    if report.run_folder:
        yield report.run_folder


def _named(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _NUM_NAMED} more" if len(nodes) > _NUM_NAMED else ""
    return f"{'node' if len(nodes) == 1 else 'nodes'} {', '.join(nodes[:_NUM_NAMED])}{more}"
