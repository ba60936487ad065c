"""`vigc config`: every key of a config with its type, default and meaning, read off the models themselves."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table

from loop.config import AcceptanceSet, HeldOutSet, RunConfig
from loop.engine_config import TransformersEngineConfig, VllmEngineConfig
from loop.sets import ImageSet, LabelledSet, kinds_of
from loop.train_config import TrainConfig, TrainStage
from policies.acceptance import ACCEPTANCE_POLICIES
from policies.correction import CORRECTION_POLICIES
from policies.filters import FILTER_POLICIES
from policies.instructions import INSTRUCTION_POLICIES
from policies.mixing import MIXING_POLICIES
from policies.registry import Registry
from policies.schedule import SCHEDULE_POLICIES, START_POLICIES, STOP_POLICIES
from policies.selection import SELECTION_POLICIES

_POLICIES: dict[str, Registry[Any]] = {
    "generation.instructions": INSTRUCTION_POLICIES,
    "correction": CORRECTION_POLICIES,
    "filters": FILTER_POLICIES,
    "selection": SELECTION_POLICIES,
    "mixing": MIXING_POLICIES,
    "schedule": SCHEDULE_POLICIES,
    "start": START_POLICIES,
    "acceptance": ACCEPTANCE_POLICIES,
    "stop": STOP_POLICIES,
}
_SETS: dict[str, type[BaseModel]] = {
    **{f"an image set of kind: {kind}": model for kind, model in kinds_of(ImageSet).items()},
    **{f"a labelled set of kind: {kind}": model for kind, model in kinds_of(LabelledSet).items()},
    "engine of kind: transformers": TransformersEngineConfig,
    "engine of kind: vllm": VllmEngineConfig,
    "held_out.NAME": HeldOutSet,
    "acceptance_sets.NAME": AcceptanceSet,
    "the config of vigc train": TrainConfig,
    "a stage of vigc train": TrainStage,
}


def print_reference(console: Console) -> None:
    """Keys, then the kinds of image and labelled sets, then the policies by name with their options."""
    console.print(_table(_keys(RunConfig, "")))
    for title, model in _SETS.items():
        console.print(f"\n{title}", style="bold")
        console.print(_table(_keys(model, "")))
    console.print("\nPolicies: a name, or {name: {option: value}}, or a class of your own as module:Name", style="bold")
    policies = Table("where", "policies", box=None)
    for where, registry in _POLICIES.items():
        policies.add_row(where, "\n".join(_signature(registry, name) for name in registry.names()))
    console.print(policies)


def _table(rows: Iterator[tuple[str, str, str]]) -> Table:
    table = Table("key", "default", "meaning", box=None)
    for row in rows:
        table.add_row(*row)
    return table


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None and field.default is not None and not field.is_required():
            yield from _keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _default(field), field.description or ""


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model behind a field that is a section of its own; policies and unions are values."""
    if get_origin(annotation) in (types.UnionType,) or get_args(annotation):
        return None
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel) and "policy" not in annotation.model_fields
    return annotation if is_section else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return str(value.model_dump().get("policy", value))
    return "" if value is PydanticUndefined else str(value)


def _signature(registry: Registry[Any], name: str) -> str:
    fields = getattr(registry.find(name), "__dataclass_fields__", {})
    shown = {option: "..." if callable(field.default_factory) else repr(field.default) for option, field in fields.items() if field.init}
    return f"{name}({', '.join(f'{option}={value}' for option, value in shown.items())})"
