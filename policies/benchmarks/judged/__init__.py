"""Benchmarks whose answers are rated by a judge: LLaVA-Bench and MM-Vet."""
