"""Kills, stalls and interrupts real runs from outside, and counts the damage. See `benchmarks/README.md`."""
