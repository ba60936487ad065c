"""Inputs of a forward pass beyond one image a row: conversations about several images or none."""
