"""`vigc plan`: what runs on which node, as a table."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.planning.packing import NodeResources, amounts_of, described
from cluster.resources.plan import ResourcePlan
from loop.config.run_config import RunConfig
from loop.errors import printable
from loop.setup.planning import Available, NodeShare, needs, node_shares, plan_lines

_PLAIN_WIDTH = 200
"""Columns where there is no terminal to fit in."""

_Column = tuple[str, Callable[[NodeResources, NodeResources, NodeShare], str]]
"""A heading, and the cell of a node: what it has, what nobody else has reserved, and its share."""


def print_plan(console: Console, config: RunConfig, plan: ResourcePlan, available: Available) -> None:
    """Print the nodes of a plan with what each gets and what is left, and what else the run needs."""
    console.print(_table(plan, available, is_plain=not console.is_terminal), width=None if console.is_terminal else _PLAIN_WIDTH)
    lines = [*plan_lines(config, plan), *(f"needed on {line}" for line in needs(config, plan))]
    if plan.nodes != available.free:
        lines.append(
            f"others have reserved a part: {described(amounts_of([node.amounts for node in available.free]))} are free; a run waits for "
            f"the rest for at most {config.cluster.start_timeout_s:g} s"
        )
    for line in lines:
        console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


def _table(plan: ResourcePlan, available: Available, *, is_plain: bool) -> Table:
    has_gpus = any(node.gpus for node in available.nodes)
    columns: list[_Column] = [
        ("node", lambda node, free, share: node.name),
        ("CPUs", lambda node, free, share: _amount(node.cpus)),
        *([("GPUs", lambda node, free, share: _amount(node.gpus))] if has_gpus else []),
        ("engines", lambda node, free, share: share.engines),
        ("trainer ranks", lambda node, free, share: share.ranks),
        ("filters", lambda node, free, share: share.filters),
        ("free CPUs", lambda node, free, share: "" if math.isinf(share.free.cpus) else _amount(share.free.cpus)),
        *([("free GPUs", lambda node, free, share: _amount(share.free.gpus))] if has_gpus else []),
    ]
    if available.free != available.nodes:
        columns.insert(1, ("used by others", lambda node, free, share: described(_used(node, free))))
    table = Table(
        *(heading for heading, _ in columns), title=f"on {printable(available.where)}", title_justify="left",
        box=None if is_plain else box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for row in zip(available.nodes, available.free, node_shares(plan), strict=True):
        table.add_row(*(cell(*row) or "-" for _, cell in columns))
    return table


def _amount(number: float) -> str:
    return "as needed" if math.isinf(number) else f"{number:g}"


def _used(node: NodeResources, free: NodeResources) -> dict[str, float]:
    return {name: amount - free.amounts[name] for name, amount in node.amounts.items() if amount > free.amounts[name]}
