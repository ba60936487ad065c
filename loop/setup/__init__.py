"""From a config to its parts, and what can be said of them before a run."""
