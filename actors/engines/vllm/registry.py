"""Asks vLLM which models it has."""

from __future__ import annotations

import importlib
import os
from typing import Any


def architectures() -> frozenset[str]:
    """The architectures, as a model's config names them, for which vLLM or one of its plugins has an implementation. Imports vLLM, which
    takes seconds."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    plugins: Any = importlib.import_module("vllm.plugins")
    plugins.load_general_plugins()
    registry: Any = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
    return frozenset(registry.get_supported_archs())
