"""Keep what a model is tested on out of what it is trained on."""
