"""Errors of engines. Every error survives pickling."""

from __future__ import annotations


class EngineError(RuntimeError):
    """An engine cannot serve: it must be killed and restarted at the champion."""


class UnfitModelError(EngineError, ValueError):
    """An engine of this kind does not compute what the model computes by itself; retrying elsewhere does not help."""


class SwapError(EngineError):
    """A weight swap failed; the engine's weights are undefined."""


class WeightMismatchError(ValueError):
    """An update does not fit the served model. Raised before anything changes: the engine still serves its old weights."""
