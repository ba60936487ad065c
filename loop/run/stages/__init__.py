"""What `loop.run.round` does one after the other, and how long it took."""
