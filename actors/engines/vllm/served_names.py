"""Maps a checkpoint's tensors to those that vLLM serves.

vLLM stacks query, key and value projections into one parameter and gate and up projections into another, prefixes some modules, and
drops tensors that are tied to others. `LoadRecorder` does not repeat these rules: it watches vLLM's own loader. With the place of
every tensor, a swap can read back the served weights and compare them with what was sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actors.engines.weights import TensorSpec

_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.clone}
_FILLS = {torch.ops.aten.fill_, torch.ops.aten.zero_}


class Span(NamedTuple):
    """Elements of a served tensor, in the order of its memory."""

    served: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint tensor of some shape is served: `spans` hold its elements in order."""

    shape: tuple[int, ...]
    spans: tuple[Span, ...]


def loader_names(model: Any) -> Callable[[str], str]:
    """Maps a checkpoint's names to those that the loader of a served model expects. They differ where a served module is wrapped in another
    one: transformers 5 omits a level of a CLIP tower that vLLM has."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)

    def loader_name(name: str) -> str:
        mapped = name if mapper is None else mapper.map_name(name)
        parts, module = (mapped or "").split("."), model
        for depth, part in enumerate(parts[:-1]):
            inside = dict(module.named_children())
            if part not in inside:
                own, level = name.split("."), list(inside) if len(inside) == 1 else []
                return ".".join([*own[: depth - len(parts)], *level, *own[depth - len(parts) :]])
            module = inside[part]
        return name

    return loader_name


@dataclass(slots=True)
class _Memory:
    """The memory of a tensor, in bytes, and what has been written to its parts: start, length, and the checkpoint tensor with the place in
    it (`None`: padding)."""

    address: int
    num_bytes: int
    written: list[tuple[int, int, tuple[str, int] | None]] = field(default_factory=list)

    def holds(self, address: int) -> bool:
        return self.address <= address < self.address + self.num_bytes

    def clear(self, start: int, end: int) -> None:
        """Drop what has been written to any of these bytes."""
        self.written = [one for one in self.written if one[0] + one[1] <= start or end <= one[0]]


class LoadRecorder(TorchDispatchMode):
    """While it is the active mode, records which parts of a model's tensors a loader fills from which checkpoint tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        tensors = {tensor.data_ptr(): tensor.nbytes for tensor in _tensors_of(model).values()}
        self._served = [_Memory(*one) for one in sorted(tensors.items())]
        self._read: list[tuple[_Memory, str, int]] = []

    def watched(self, weights: Iterable[tuple[str, str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The loader's weights, from a checkpoint's names, the loader's names, and tensors."""
        for name, loader_name, tensor in weights:
            self._read.append((_Memory(tensor.data_ptr(), tensor.nbytes), name, 0))
            yield loader_name, tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.copy_:
            self._record(args[0], args[1])
        elif func.overloadpacket in _FILLS:
            self._record(args[0], None)
        elif func.overloadpacket in _COPIES and result.dtype == args[0].dtype and (origin := self._origin(args[0])):
            self._read.append((_Memory(result.data_ptr(), result.nbytes), *origin))
        return result

    def places(self, model: torch.nn.Module, manifest: Mapping[str, TensorSpec]) -> dict[str, Place] | None:
        """The place of every checkpoint tensor that is served.

        Args:
            model: the loaded model, processed for its kernels.
            manifest: the checkpoint's tensors.

        Returns:
            the places, or `None` if a served parameter does not consist of unchanged checkpoint tensors and padding: sharded over
            devices, packed for a kernel, quantized, or computed from the checkpoint.
        """
        found: dict[str, list[tuple[int, Span]]] = {}
        memory = {one.address: one for one in self._served}
        parameters = dict(model.named_parameters())
        for served, tensor in _tensors_of(model).items():
            filled = memory.get(tensor.data_ptr())
            if served in parameters and (filled is None or sum(one[1] for one in filled.written) != tensor.nbytes):
                return None
            for start, length, origin in filled.written if filled else ():
                if origin is not None:
                    span = Span(served, start // tensor.itemsize, length // tensor.itemsize)
                    found.setdefault(origin[0], []).append((origin[1], span))
        places = {name: Place(spec.shape, tuple(_in_order(found[name]))) for name, spec in manifest.items() if name in found}
        whole = all(sum(span.length for span in place.spans) == torch.Size(place.shape).numel() for place in places.values())
        return places if whole and places.keys() == found.keys() else None

    def _record(self, target: torch.Tensor, source: torch.Tensor | None) -> None:
        number = bisect_right(self._served, target.data_ptr(), key=lambda one: one.address) - 1
        if number < 0 or not self._served[number].holds(target.data_ptr()):
            return
        served = self._served[number]
        start = target.data_ptr() - served.address
        served.clear(start, start + target.nbytes if target.is_contiguous() else served.num_bytes)
        origin = None if source is None else self._origin(source)
        copied = source is None or (origin and source.is_contiguous() and source.nbytes == target.nbytes and source.dtype == target.dtype)
        if target.is_contiguous() and copied:
            served.written.append((start, target.nbytes, origin))

    def _origin(self, source: torch.Tensor) -> tuple[str, int] | None:
        """The newest checkpoint tensor in whose memory a tensor begins, and where."""
        found = (one for one in reversed(self._read) if one[0].holds(source.data_ptr()))
        memory, name, offset = next(found, (None, "", 0))
        return None if memory is None else (name, offset + source.data_ptr() - memory.address)


def _tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's parameters and buffers, of tied ones the first."""
    return {name: tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_contiguous()}


def _in_order(parts: list[tuple[int, Span]]) -> Iterator[Span]:
    """The spans of one tensor in its own order; those that follow each other in one served tensor are joined."""
    joined: list[Span] = []
    for _, span in sorted(parts):
        last = joined[-1] if joined else None
        if last is not None and (last.served, last.start + last.length) == (span.served, span.start):
            joined[-1] = Span(span.served, last.start, last.length + span.length)
        else:
            joined.append(span)
    return iter(joined)
