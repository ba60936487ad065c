"""A run folder of its own for a hostile test."""

from tests.loop.conftest import run_dir, store  # noqa: F401 (fixtures)
