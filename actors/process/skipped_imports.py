"""Skips imports that actors do not need: on a small machine these take most of the start-up time."""

from __future__ import annotations

from typing import Any


def skip_sklearn() -> None:
    """Keep transformers from importing scikit-learn, which MLflow installs. Only assisted generation uses it, and the import takes
    longer than loading the embedded model. Call this before importing the first model class."""
    import transformers.utils

    names: Any = transformers.utils
    names.is_sklearn_available = lambda: False
