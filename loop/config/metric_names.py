"""Check that names of a config stay distinct in MLflow and in tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MAX_KEY_CHARACTERS = 250


def mlflow_key(name: str) -> str:
    """`name` as a valid MLflow key: other characters become `_`, and it is a plain relative path."""
    parts = re.sub(r"[^\w.\-/ ]", "_", name).split("/")
    return "/".join(part for part in parts if part.strip("."))[:MAX_KEY_CHARACTERS].rstrip("/") or "_"


def check_distinct(kind: str, names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: two of the names would be one metric in MLflow, or look the same in a table.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_shown(name), name)
        if other is not name:
            raise ValueError(f"{kind} has {other!r} and {name!r}, which MLflow and tables show as one; rename one of them")


def _shown(name: str) -> str:
    """What MLflow and tables make of a name: tables show `_` as a space, and leading, trailing or repeated spaces are invisible."""
    return " ".join(mlflow_key(unicodedata.normalize("NFKC", name)).replace("_", " ").split())
