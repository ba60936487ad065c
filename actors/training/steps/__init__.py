"""Unfinished trainings: step checkpoints and best weights, in a folder that all ranks see or behind a URI."""
