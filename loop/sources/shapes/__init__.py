"""The embedded world: drawn scenes with exact truth."""
