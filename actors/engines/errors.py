"""What can go wrong in an engine. Every error survives pickling."""

from __future__ import annotations


class EngineError(RuntimeError):
    """An engine cannot serve: it must be killed and restarted at the champion."""


class UnfitModelError(EngineError, ValueError):
    """An engine of this kind would not run the model as the model runs by itself, on any machine and in any attempt."""


class SwapError(EngineError):
    """A weight swap failed; what the engine holds is undefined."""


class WeightMismatchError(ValueError):
    """An update does not fit the served model. Raised before anything is touched: the engine still serves its old weights."""
