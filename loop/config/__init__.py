"""The keys of a config, and how they are read."""
