"""Benchmarks of the field, by name in `BENCHMARKS`."""

from policies.benchmarks import aokvqa, exact, gqa, mmbench, mme, pope, scienceqa, seed_bench, vqa
from policies.benchmarks.base import BENCHMARKS, Benchmark, Prediction, Question
from policies.benchmarks.captions import chair, coco
from policies.benchmarks.documents import BenchmarkDataError, Document, parse_document
from policies.benchmarks.hallucination import amber, hallusion_bench
from policies.benchmarks.judged import llava_bench, mm_vet

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkDataError",
    "Document",
    "Prediction",
    "Question",
    "amber",
    "aokvqa",
    "chair",
    "coco",
    "exact",
    "gqa",
    "hallusion_bench",
    "llava_bench",
    "mm_vet",
    "mmbench",
    "mme",
    "parse_document",
    "pope",
    "scienceqa",
    "seed_bench",
    "vqa",
]
