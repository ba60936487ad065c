"""The embedded world of drawings: scenes of things as different houses draw them, with exact truth."""
