"""What the embedded worlds share: the grid, the grammar of questions and claims, habits, sources and teachers."""
