"""Documents, questions and scores of small benchmarks, for tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from policies.benchmarks import BENCHMARKS, BenchmarkDataError, Document, parse_document


def document(value: Any, name: str = "data.json") -> Document:
    return parse_document(name, json.dumps(value).encode())


def lines(*records: Any, name: str = "predictions.jsonl") -> Document:
    return parse_document(name, "\n".join(map(json.dumps, records)).encode())


def score(name: str, data: list[Document], predictions: Document, allow_missing: bool = False, **options: Any) -> dict[str, Any]:
    benchmark = BENCHMARKS.build(name, options)
    questions = benchmark.read(data)
    return benchmark.score(questions, benchmark.read_predictions(predictions, questions, allow_missing))


def faults(name: str, data: list[Document], predictions: Document, allow_missing: bool = False) -> list[str]:
    """What is said against data or predictions; there must be something."""
    with pytest.raises(BenchmarkDataError) as error:
        score(name, data, predictions, allow_missing)
    return error.value.findings
