"""Expands `~` in command-line arguments."""

from __future__ import annotations

import os
from typing import Any

from typer.core import TyperGroup


class PathGroup(TyperGroup):
    """Expands `~/x` in every argument: shells do not expand it after `--out=` or in quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_with_home(one) for one in args])


def _with_home(argument: str) -> str:
    option, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{mark}{os.path.expanduser(value)}"
