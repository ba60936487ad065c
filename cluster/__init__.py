"""Where it runs: resources, supervision, and weight swaps."""
