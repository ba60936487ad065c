"""Benchmarks of the field, by name in `BENCHMARKS`."""

from policies.benchmarks import aokvqa, gqa, llava_bench, mmbench, mme, pope, scienceqa, seed_bench, vqa
from policies.benchmarks.base import BENCHMARKS, Benchmark, Prediction, Question
from policies.benchmarks.captions import chair, coco
from policies.benchmarks.documents import BenchmarkDataError, Document, parse_document

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkDataError",
    "Document",
    "Prediction",
    "Question",
    "aokvqa",
    "chair",
    "coco",
    "gqa",
    "llava_bench",
    "mmbench",
    "mme",
    "parse_document",
    "pope",
    "scienceqa",
    "seed_bench",
    "vqa",
]
