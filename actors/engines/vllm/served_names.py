"""Maps a checkpoint's tensors to the parameters of a serving engine, which renames some tensors and merges others.

vLLM stacks query, key and value projections into one parameter and gate and up projections into another, and prefixes some
modules. With the place of every tensor, a swap can read back the served weights and compare them with what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.engines.weights import TensorSpec

_VISION_TOWER = "vision_tower."
_VISION_MODEL = "vision_tower.vision_model."


@dataclass(frozen=True, slots=True)
class Place:
    """Rows `start` to `start + num_rows` of a served parameter; a scalar or whole parameter has all its rows."""

    parameter: str
    start: int
    num_rows: int


def served_name(name: str, served: Iterable[str]) -> str:
    """A checkpoint's name as the engine's loader expects it: transformers 5 omits a level of a CLIP tower that vLLM has."""
    if name.startswith(_VISION_TOWER) and not name.startswith(_VISION_MODEL) and any(one.startswith(_VISION_MODEL) for one in served):
        return _VISION_MODEL + name.removeprefix(_VISION_TOWER)
    return name


def find_places(
    checkpoint: Mapping[str, TensorSpec],
    served: Mapping[str, tuple[int, ...]],
    mapped: Callable[[str], str | None],
    merged: Mapping[str, Sequence[str]],
) -> dict[str, Place] | None:
    """The place of every checkpoint tensor that is served.

    Args:
        checkpoint: the checkpoint's tensors.
        served: shape of every served parameter.
        mapped: the engine's own mapping of a checkpoint's name; `None` if it drops the tensor.
        merged: a merged module's name -> its members' names, in the order of their rows.

    Returns:
        the places, or `None` if a served parameter does not consist of whole checkpoint tensors: sharded over devices, packed
        for a kernel, quantized, or in another layout. Rows beyond the last tensor may only be padding of a vocabulary.
    """
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in served}
    for name in checkpoint:
        inner = mapped(name)
        if inner is None:
            continue
        inner = served_name(inner, served)
        for order, candidate in enumerate(_candidates(inner, merged)):
            if candidate in served:
                found[candidate].append((_member_order(inner, candidate, merged) if order else 0, name))
                break
    places: dict[str, Place] = {}
    for parameter, members in found.items():
        start = 0
        for _, name in sorted(members):
            shape = checkpoint[name].shape
            if shape[1:] != served[parameter][1:]:
                return None
            num_rows = shape[0] if shape else 1
            places[name] = Place(parameter, start, num_rows)
            start += num_rows
        num_served = served[parameter][0] if served[parameter] else 1
        padded = "embed_tokens" in parameter or "lm_head" in parameter
        if not members or start > num_served or (start < num_served and not padded):
            return None
    return places


def _candidates(name: str, merged: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The name itself, then the name of each merged module that it may belong to."""
    yield name
    parts = name.split(".")
    for whole, members in merged.items():
        for at, part in enumerate(parts):
            if part in members:
                yield ".".join([*parts[:at], whole, *parts[at + 1 :]])


def _member_order(name: str, candidate: str, merged: Mapping[str, Sequence[str]]) -> int:
    """The index of a tensor among the members of its merged module."""
    own, whole = next((a, b) for a, b in zip(name.split("."), candidate.split("."), strict=True) if a != b)
    return list(merged[whole]).index(own)
