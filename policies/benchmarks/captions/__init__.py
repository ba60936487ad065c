"""Benchmarks of captions: CHAIR, and the metrics of the COCO caption challenge."""
