"""Hostile input: runs `tests/hostile` with the larger hypothesis profile and counts the inputs."""

from __future__ import annotations

import re
import subprocess
import sys

from benchmarks.chaos.drivers import Record
from benchmarks.chaos.world import ROOT

TESTS = ROOT / "tests" / "hostile"
PROFILE = "chaos"
_INPUTS = re.compile(r"fuzzed inputs: (\d+)")
_OUTCOMES = re.compile(r"(\d+) (passed|failed|error)")


def fuzz(record: Record, timeout_s: float) -> None:
    """Run the tests and record the counts; a run that exceeds `timeout_s` counts as failed."""
    command = [sys.executable, "-m", "pytest", str(TESTS), "-m", "not slow", f"--hypothesis-profile={PROFILE}", "-p", "no:cacheprovider"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        record("fuzz", {"inputs": 0, "tests": 1, "failed": 1, "output": f"{error}"})
        return
    counts = {kind: int(number) for number, kind in _OUTCOMES.findall(result.stdout)}
    failed = counts.get("failed", 0) + counts.get("error", 0) or int(result.returncode != 0)
    inputs = sum(int(number) for number in _INPUTS.findall(result.stdout))
    output = result.stdout[-4000:] + result.stderr[-1000:] if failed else ""
    record("fuzz", {"inputs": inputs, "tests": counts.get("passed", 0) + failed, "failed": failed, "output": output})
