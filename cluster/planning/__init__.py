"""Fits the actors of a run onto nodes: pure arithmetic, before anything is reserved."""
