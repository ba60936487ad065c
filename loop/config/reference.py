"""`vigc config`: every key of a config with its default and meaning, read from the config models."""

from __future__ import annotations

import inspect
import io
import math
import sys
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from loop.config.engine_config import TransformersEngineConfig, VllmEngineConfig
from loop.config.run_config import AcceptanceSet, HeldOutSet, RunConfig
from loop.config.sets import ImageSet, LabelledSet, kinds_of
from loop.config.train_config import TrainConfig, TrainStage
from policies.acceptance.rules import ACCEPTANCE_POLICIES
from policies.correction.methods import CORRECTION_POLICIES
from policies.filtering.filters import FILTER_POLICIES
from policies.generation.instructions import INSTRUCTION_POLICIES
from policies.registry import Registry
from policies.schedule import SCHEDULE_POLICIES, START_POLICIES, STOP_POLICIES
from policies.scoring.answer_metrics import ANSWER_METRICS
from policies.training.mixing import MIXING_POLICIES
from policies.training.objectives import OBJECTIVES
from policies.training.selection import SELECTION_POLICIES

_POLICIES: dict[str, Registry[Any]] = {
    "generation.instructions": INSTRUCTION_POLICIES,
    "correction": CORRECTION_POLICIES,
    "filters": FILTER_POLICIES,
    "selection": SELECTION_POLICIES,
    "mixing": MIXING_POLICIES,
    "schedule": SCHEDULE_POLICIES,
    "start": START_POLICIES,
    "training.objective": OBJECTIVES,
    "acceptance": ACCEPTANCE_POLICIES,
    "stop": STOP_POLICIES,
    "metric": ANSWER_METRICS,
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


_UNBOUNDED = 10_000
"""Width in columns of output that is not a terminal: lines stay whole for grep and less."""


def print_reference() -> None:
    """Print the keys, the kinds of image and labelled sets, and the policies with their options. A terminal sets the width; other output
    has one line for each key and each policy."""
    if sys.stdout.isatty():
        _print_all(Console())
        return
    with io.StringIO() as text:
        _print_all(Console(file=text, width=_UNBOUNDED))
        for line in text.getvalue().splitlines():
            print(line.rstrip())


def key_tables() -> Iterator[tuple[str, Iterator[tuple[str, str, str]]]]:
    """The tables of keys: title, and rows of key, default and meaning. The first is the config of a run; others are the kinds of sets and
    engines, and the config of `vigc train`."""
    yield "the config of a run", _keys(RunConfig, "")
    for title, model in _SETS.items():
        yield title, _keys(model, "")


def policy_rows() -> Iterator[tuple[str, str, str]]:
    """The policies that a config can name: the key that takes it, the policy with its options and their defaults, and its meaning."""
    for where, registry in _POLICIES.items():
        for name in registry.names():
            meaning, _, _ = inspect.cleandoc(registry.find(name).__doc__ or "").partition("\n\n")
            yield where, _signature(registry, name), " ".join(meaning.split())


def _print_all(console: Console) -> None:
    for number, (title, rows) in enumerate(key_tables()):
        if number:
            console.print(f"\n{title}", style="bold")
        console.print(_table(rows))
    console.print("\nPolicies: a name, or {name: {option: value}}, or a class of your own as module:Name (docs/policies.md)", style="bold")
    policies = Table(Column("where", no_wrap=True), Column("policies", overflow="fold"), box=None)
    for where, signature, _ in policy_rows():
        policies.add_row(where, Text(signature))
    console.print(policies)


def _table(rows: Iterator[tuple[str, str, str]]) -> Table:
    table = Table(Column("key", no_wrap=True), Column("default", overflow="fold"), "meaning", box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None and field.default is not None and not field.is_required():
            yield from _keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _default(field), field.description or ""


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model behind a field that is a section of its own, or null; policies and other unions are values."""
    models = [one for one in get_args(annotation) or (annotation,) if one is not NoneType]
    model = models[0] if len(models) == 1 else None
    return model if isinstance(model, type) and issubclass(model, BaseModel) and "policy" not in model.model_fields else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        plain = value.model_dump(mode="json")
        return str(plain.get("policy") or plain.get("kind") or plain)
    return "" if value is PydanticUndefined else _as_yaml(value)


def _as_yaml(value: Any) -> str:
    """A default as a config would spell it."""
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()


def _signature(registry: Registry[Any], name: str) -> str:
    fields = getattr(registry.find(name), "__dataclass_fields__", {})
    shown = {option: "..." if callable(field.default_factory) else repr(field.default) for option, field in fields.items() if field.init}
    return f"{name}({', '.join(f'{option}={value}' for option, value in shown.items())})"
