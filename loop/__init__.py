"""When, and what is remembered: the loop, its store and its commands."""
