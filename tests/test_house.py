"""Who may import whom: the four folders' one-way dependencies, held by reading every import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "policies": {"actors", "cluster", "loop", "ray", "torch"},
    "actors": {"cluster", "loop"},
    "cluster": {"loop"},
}
HEAVY = ("ray", "torch", "transformers", "vllm", "mlflow")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import in a file, those inside functions and `TYPE_CHECKING` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the package"
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {package}"
        for path in files
        for line, package in imports_of(path)
        if package in FORBIDDEN[folder]
    ]
    assert found == []


def test_policies_are_imported_without_ray_and_torch() -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / "policies").rglob("*.py") if path.stem != "__init__"]
    modules = sorted(".".join(path.with_suffix("").parts) for path in files)
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
