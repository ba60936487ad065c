"""Structure of the code base: import rules, import circles, files per folder, and file names in the documentation."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "policies": {"actors", "cluster", "loop", "ray", "torch"},
    "actors": {"cluster", "loop"},
    "cluster": {"loop"},
}
PRODUCT = ("policies", "actors", "cluster", "loop")
MAX_FILES = 14
HEAVY = ("ray", "torch", "transformers", "vllm", "mlflow")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, including inside functions and `TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the package"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imports_of(path)
        if name.partition(".")[0] in FORBIDDEN[folder]
    ]
    assert found == []


def test_policies_are_imported_without_ray_and_torch() -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / "policies").rglob("*.py") if path.stem != "__init__"]
    modules = sorted(".".join(path.with_suffix("").parts) for path in files)
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []


def modules() -> dict[str, Path]:
    """Every module of the product by dotted name; a package by its folder's name."""
    files = (path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the product that a file imports; of a name that is not a module, the module that it is imported from."""
    for _, name in imports_of(path):
        module = name if name in known else name.rpartition(".")[0]
        if module in known:
            yield module


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The first circle of a graph; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_around_a_circle() -> None:
    known = modules()
    assert circle({name: set(imported(path, known)) - {name} for name, path in known.items()}) == []


def test_no_room_imports_itself_around_a_circle() -> None:
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph.setdefault(room(name), set()).update(map(room, imported(path, known)))
    assert len(graph) > 30
    assert circle({name: others - {name} for name, others in graph.items()}) == []


def room(name: str) -> str:
    """A direct subfolder of one of the four packages, with everything in it, or a file directly in one of the four."""
    return ".".join(name.split(".")[:2])


def test_no_folder_has_more_files_than_one_can_look_over() -> None:
    folders = {path.parent for top in (*PRODUCT, "benchmarks") for path in (ROOT / top).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if len(list(folder.glob("*.py"))) > MAX_FILES] == []


def test_documents_name_files_that_exist() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md", ROOT / "cluster/launch/README.md"]
    named = {
        f"{document.name}: {path}"
        for document in documents
        if document.name != "CHANGELOG.md"
        for path in re.findall(
            r"(?:policies|actors|cluster|loop|benchmarks|tests|docs)/[\w./-]+\.\w+", document.read_text(encoding="utf-8")
        )
    }
    assert len(named) > 30
    assert sorted(one for one in named if not (ROOT / one.partition(": ")[2]).exists()) == []
