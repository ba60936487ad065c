"""The stages of `loop.run.round`, and a clock for them."""
