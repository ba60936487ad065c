"""Installs the torchvision that goes with the installed torch: `python -m cluster.launch.install_torchvision`, part of `make install`.

Wheels on the package index are built for CUDA and do not load with a CPU torch. There, torchvision's Python part is repacked into a
wheel without compiled operators: transformers and vLLM use only its transforms.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

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
    """Install, then import what was installed; exits with a message if torch is missing."""
    if Version(torch_version()).local != "cpu":
        pip("install", "--no-deps", f"torchvision=={_TORCHVISION}")
    elif _installed("torchvision") != f"{_TORCHVISION}+python":
        with tempfile.TemporaryDirectory() as folder:
            pip("install", "--no-deps", "--force-reinstall", str(_repacked(Path(folder))))
    subprocess.run([sys.executable, "-c", "import torchvision.ops"], check=True)


def torch_version() -> str:
    """The version of the installed torch; exits with a message if there is none."""
    found = _installed("torch")
    if found is None:
        sys.exit("torch is not installed here; run `make install` first")
    return found


def _repacked(folder: Path) -> Path:
    """Build a wheel of torchvision's Python files in `folder`."""
    pip("download", "--no-deps", "--dest", str(folder), f"torchvision=={_TORCHVISION}")
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


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments[:1], "--quiet", *arguments[1:]], check=True)


def _wheel(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "wheel", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
