"""Engines and filters: tasks for them, their health and restarts, and rolling weight swaps."""
