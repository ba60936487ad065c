"""Imports that actors do without: on a small machine they are most of what a start takes."""

from __future__ import annotations

from typing import Any


def spare_sklearn() -> None:
    """Have transformers not import scikit-learn, which MLflow brings: it would be for the thresholds of assisted generation alone, and
    takes longer than the embedded model. Call it before the first model class is imported."""
    import transformers.utils

    names: Any = transformers.utils
    names.is_sklearn_available = lambda: False
