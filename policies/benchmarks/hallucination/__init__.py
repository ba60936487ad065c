"""Benchmarks of hallucination with yes-or-no questions: AMBER and HallusionBench."""
