"""Models: checked before use, fetched, served outside of a run, and the embedded ones made from nothing."""
