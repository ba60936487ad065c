"""A teacher's prompts, and what is taken of its output."""
