"""Names of a config in MLflow, and whether they can be told apart there and in tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MAX_KEY_CHARACTERS = 250


def mlflow_key(name: str) -> str:
    """`name` as a key MLflow takes: other characters become `_`, and it is a plain relative path."""
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
    """What MLflow and tables make of a name: tables show `_` as a space, and spaces at an end or in a row are not seen."""
    return " ".join(mlflow_key(unicodedata.normalize("NFKC", name)).replace("_", " ").split())
