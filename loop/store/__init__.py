"""The run folder: parts, checkpoints, commits, and their verification."""
