"""What a config says of monitors, and names that stay distinct in MLflow and in tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from loop.config.sections import POLICY_NAME, Section, listed

MAX_KEY_CHARACTERS = 250
MONITORS = ("mlflow", "jsonl", "ray", "tensorboard", "wandb")
MAX_LABEL_CHARACTERS = 100
DEFAULT_EXPERIMENT = "vigc"


def _label(text: str) -> str:
    if not (text.strip() and text.isprintable() and len(text) <= MAX_LABEL_CHARACTERS):
        raise ValueError(f"a name is expected: 1 to {MAX_LABEL_CHARACTERS} printable characters")
    return text


def _monitor_name(text: str) -> str:
    if text not in MONITORS and not (":" in text and re.fullmatch(POLICY_NAME, text)):
        raise ValueError(f"unknown monitor; expected one of {', '.join(MONITORS)}, or a class of your own as module:Name")
    return text


Label = Annotated[str, AfterValidator(_label)]
"""A name that tables, logs and MLflow show."""
MonitorName = Annotated[str, AfterValidator(_monitor_name)]
MonitorNames = Annotated[tuple[MonitorName, ...], BeforeValidator(listed)]


class TrainingTracking(Section):
    enabled: bool = Field(True, description="mirror the run to MLflow")
    experiment: Label = Field(DEFAULT_EXPERIMENT, description="MLflow experiment")


class TrackingConfig(TrainingTracking):
    registered_model: Label | None = Field(
        None, description="MLflow registered model, whose alias `champion` follows the run; null is vigc-NAME, one for each run name"
    )
    num_samples: int = Field(50, ge=0, description="accepted and rejected records per round shown as tables")
    num_traces: int = Field(
        24, ge=0, le=1000, description="records per round shown as traces with their pictures, for people to review; 0 for none"
    )
    gallery_samples: int = Field(60, ge=0, description="records per round in the gallery among MLflow's artifacts; 0 writes none")


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
