"""The loop, its rounds, and trainings without a loop."""
