"""The embedded models: anatomy, curriculum and checkpoint."""
