"""Apply dotted overrides to a config that is still a plain document."""

from __future__ import annotations

from typing import Any

from loop.config.sections import unfolded
from loop.config.yaml_input import MAX_DEPTH, read_yaml
from loop.errors import UserError, one_line


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set one dotted key, such as `training.num_steps=50`. Existing keys that contain dots (`held_out.0-0.15.num_questions`) are
    matched whole.

    Raises:
        UserError: it is not `key=value`, the value is not YAML, or the key leads nowhere.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} is not of the form key=value, such as training.num_steps=50")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise UserError(f"override {override[:80]!r} has a value that is not YAML: {one_line(error)}") from error
    target: Any = document
    steps = key.split(".")
    if len(steps) > MAX_DEPTH:
        raise UserError(f"override {override[:80]!r} has {len(steps)} steps; no key of a config has more than {MAX_DEPTH}")
    step, rest = _first_step(target, steps)
    while rest:
        target = _child(target, step, key)
        step, rest = _first_step(target, rest)
    target[_place(target, step, key)] = value


def _first_step(target: Any, steps: list[str]) -> tuple[str, list[str]]:
    """The first step of a path and what remains: the longest existing key that the path begins with, or the text up to its dot."""
    known = (size for size in range(len(steps), 0, -1) if isinstance(target, dict) and ".".join(steps[:size]) in target)
    size = next(known, 1)
    return ".".join(steps[:size]), steps[size:]


def _place(target: Any, step: str, key: str) -> Any:
    """Key or index that a step stands for. `mixing.options` and `mixing.replay` are the same if the policy is `replay`."""
    if isinstance(target, list) and step.isdecimal() and int(step) < len(target):
        return int(step)
    if not isinstance(target, dict):
        raise UserError(f"override {key!r}: {step!r} is not inside a mapping or list of the config")
    if step in ("policy", "options") and len(target) == 1 and step not in target:
        spec = unfolded(dict(target))
        target.clear()
        target.update(spec)
    return "options" if target.get("policy") == step else step


def _child(target: Any, step: str, key: str) -> Any:
    """The mapping or list at a step: created if missing, unfolded if a policy or an engine is given by its name."""
    place = _place(target, step, key)
    child = target[place] if isinstance(target, list) else target.get(place)
    if child is None:
        child = {}
    elif isinstance(child, str):
        child = {"kind": child} if step == "engine" else unfolded(child)
    target[place] = child
    return child
