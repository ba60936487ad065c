"""Builds engines by name: the only place where `engine: NAME` becomes a running model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.folders import Folder, local_path
from actors.process.skipped_imports import skip_sklearn

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.engines.base import Engine


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How to build an engine inside an actor. `options` are the constructor's keyword arguments."""

    kind: str
    model: str | Folder
    options: dict[str, Any] = field(default_factory=dict)


def _transformers(spec: EngineSpec) -> Engine:
    skip_sklearn()
    from actors.engines.transformers import TransformersEngine

    return TransformersEngine(local_path(spec.model), **spec.options)


def _vllm(spec: EngineSpec) -> Engine:
    from actors.engines.vllm.engine import VllmEngine
    from actors.engines.vllm.options import VllmOptions

    return VllmEngine(local_path(spec.model), VllmOptions(**spec.options))


ENGINES: dict[str, Callable[[EngineSpec], Engine]] = {"transformers": _transformers, "vllm": _vllm}


def build_engine(spec: EngineSpec) -> Engine:
    """Build the engine of a spec; heavy imports happen here, inside the actor."""
    return ENGINES[spec.kind](spec)
