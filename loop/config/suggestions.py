"""Suggest what was probably meant: the key of a config for one that does not exist, and the command for a config of another kind."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

_HERE, _ELSEWHERE, _FAR = 0.75, 0.85, 0.6
"""Similarity that a suggestion needs: at the same place, elsewhere, and at the same place when nothing was found elsewhere."""


def meant_key(config: type[BaseModel], place: tuple[str | int, ...]) -> str:
    """The dotted key that was probably meant by the unknown one at `place`; empty if there is none. Every entry of lists and of
    mappings with user-defined names is searched; entries elsewhere are shown as N and NAME."""
    *parents, unknown = map(str, place)
    levels = {config}
    for step in parents:
        levels = _below(levels, step)
    here = {name: ".".join((*spelled(config, place)[:-1], name)) for level in levels for name in level.model_fields}
    elsewhere: dict[str, str] = {}
    for path in _paths(config, ""):
        elsewhere.setdefault(path.rsplit(".", 1)[-1], path)
    for known, cutoff in ((here, _HERE), (elsewhere, _ELSEWHERE), (here, _FAR)):
        if close := difflib.get_close_matches(unknown, [*known], 1, cutoff):
            return known[close[0]]
    return ""


def spelled(config: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    """The steps of a place as a config spells them, without the section kinds that pydantic adds."""
    levels, steps = {config}, []
    for step in map(str, place):
        if not _of_kind(levels, step) or any(step in level.model_fields for level in levels):
            steps.append(step)
        levels = _below(levels, step)
    return steps


def _of_kind(levels: set[type[BaseModel]], kind: str) -> set[type[BaseModel]]:
    return {level for level in levels if "kind" in level.model_fields and kind in get_args(level.model_fields["kind"].annotation)}


def _below(levels: set[type[BaseModel]], step: str) -> set[type[BaseModel]]:
    """The sections that a step of a place leads to: through a key, an entry of a list or mapping, or the kind of a section."""
    through_key = {inner for level in levels if step in level.model_fields for inner in _sections(level.model_fields[step].annotation)}
    return through_key or _of_kind(levels, step) or levels


def _paths(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted keys, those of outer sections first."""
    for name in section.model_fields:
        yield f"{prefix}{name}"
    for name, field in section.model_fields.items():
        for inner in _sections(field.annotation):
            if "policy" not in inner.model_fields:
                yield from _paths(inner, f"{prefix}{name}.{_entry(field.annotation)}")


def _entry(annotation: Any) -> str:
    origin = getattr(annotation, "__origin__", None)
    return "N." if origin in (tuple, list) else "NAME." if origin is dict else ""


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation names, at whatever depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(section for inner in get_args(annotation) for section in _sections(inner)))
