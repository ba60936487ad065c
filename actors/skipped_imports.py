"""Imports that actors skip because they need nothing of them: on a small machine they take most of a start."""

from __future__ import annotations

from typing import Any


def skip_sklearn() -> None:
    """Keep transformers from importing scikit-learn, which MLflow installs. Only assisted generation would use it, and the import takes
    longer than loading the embedded model. Call this before the first model class is imported."""
    import transformers.utils

    names: Any = transformers.utils
    names.is_sklearn_available = lambda: False
