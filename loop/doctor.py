"""`vigc doctor`: what this machine has for running the loop, and what to do about what it lacks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Column, Table

from loop.config.run_config import EMBEDDED_MODELS

_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "pyarrow", "mlflow", "rensa", "scipy")
_MIN_MEMORY_BYTES = 6 * 2**30
_TORCHVISION_AHEAD = 15
_MIN_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = True


def examine(folder: Path = Path()) -> list[Finding]:
    """Look at Python, packages, cores, memory, disk, accelerators and the embedded models; starts nothing."""
    machine = [_cores(), _memory(), _disk(folder), _gpus()]
    return [_python(), *map(_package, _PACKAGES), *machine, _torchvision(), _vllm(), *_seed_models()]


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """The findings as a table, advice where something is missing."""
    table = Table("", "what", Column("found", overflow="fold"), "advice", box=None)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]missing[/]" if finding.required else "[yellow]absent[/]"
        table.add_row(mark, finding.name, finding.found, "" if finding.ok else finding.advice)
    console.print(table)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", (3, 11) <= sys.version_info[:2] < (3, 13), version, "install Python 3.11 or 3.12")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "make install")


def _cores() -> Finding:
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1
    return Finding("CPU cores", cores >= 2, str(cores), "the recipes start two engines and two trainer ranks; set both to 1")


def _memory() -> Finding:
    total = psutil.virtual_memory().total
    return Finding("memory", total >= _MIN_MEMORY_BYTES, f"{total / 2**30:.1f} GiB", "the embedded recipe needs 6 GiB")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    return Finding("free disk", free >= _MIN_DISK_BYTES, f"{free / 2**30:.1f} GiB", "keep 2 GiB free for run folders")


def _gpus() -> Finding:
    names: list[str] = []
    if importlib.util.find_spec("torch") is not None:  # the doctor must be able to say that it is missing
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("GPU", bool(names), ", ".join(names) or "none", "not needed for the embedded world", required=False)


def torchvision_remedy() -> str:
    """How torchvision is installed in the version that goes with torch: 0.15 with 2.0, 0.16 with 2.1, and so on."""
    pinned = ""
    if _package("torch").ok:
        major, minor = importlib.metadata.version("torch").split(".")[:2]
        if major == "2":
            pinned = f" (torchvision==0.{int(minor) + _TORCHVISION_AHEAD}.* with torch {major}.{minor})"
    return f"`make install` installs it; elsewhere install the version that goes with torch{pinned}"


def _torchvision() -> Finding:
    found = _package("torchvision")
    users = "families since Qwen2.5-VL (InternVL, LLaVA-OneVision, Pixtral) have processors that need it, LLaVA and InstructBLIP do not"
    return Finding(found.name, found.ok, found.found, f"{users}: {torchvision_remedy()}", required=False)


def _vllm() -> Finding:
    present = importlib.util.find_spec("vllm") is not None
    return Finding(
        "vLLM",
        present,
        "installed" if present else "not installed",
        "make install-vllm on a CPU, pip install -e .[gpu] beside a GPU",
        required=False,
    )


def seed_command(folder: Path) -> str:
    """The command that trains a shipped seed model into its folder."""
    world = " --world drawings" if folder == EMBEDDED_MODELS["embedded-drawings"] else ""
    return f"vigc seed{world} --out {folder}"


def _seed_models() -> list[Finding]:
    """The model of `shapes` is part of every installation's tests and demo; that of `drawings` is needed by its recipe only."""
    found: list[Finding] = []
    for name, folder in EMBEDDED_MODELS.items():
        present = (folder / "model.safetensors").exists()
        title = f"{name.replace('-', ' ')} seed model"
        found.append(Finding(title, present, str(folder), f"make it with: {seed_command(folder)}", required=name == "embedded"))
    return found
