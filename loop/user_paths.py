"""`~` in the arguments of commands."""

from __future__ import annotations

import os
from typing import Any

from typer.core import TyperGroup


class PathGroup(TyperGroup):
    """Takes `~/x` for a path wherever it stands: shells leave it alone behind `--out=` and in quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_with_home(one) for one in args])


def _with_home(argument: str) -> str:
    option, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{mark}{os.path.expanduser(value)}"
