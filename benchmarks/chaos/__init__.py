"""Kills, stalls and interrupts real runs from outside, and counts what that costs. See `benchmarks/README.md`."""
