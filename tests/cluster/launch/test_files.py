"""The files that other launchers read: they name what exists, and agree with each other and with the locked versions."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.paths import ROOT

LAUNCH = ROOT / "cluster" / "launch"
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FIELDS = {
    "": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
        "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
        "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
    },
    "rayClusterSpec": {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
        "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
    },
    "rayClusterSpec.authOptions": {"mode", "secretName", "enableK8sTokenAuth"},
    "rayClusterSpec.headGroupSpec": {"enableIngress", "headService", "rayStartParams", "serviceType", "template"},
    "rayClusterSpec.workerGroupSpecs": {
        "groupName", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas", "scaleStrategy", "template",
    },
}  # fmt: skip
"""Fields of a RayJob by their place in its spec, from KubeRay's types (`ray-operator/apis/ray/v1`). An API server refuses others."""

TASK_KEYS = {"name", "num_nodes", "resources", "workdir", "envs", "secrets", "setup", "run", "file_mounts", "volumes", "config"}
"""Keys of a task in SkyPilot's schema, `sky.utils.schemas.get_task_schema`."""


def read(name: str) -> list[Any]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


# ---- KubeRay


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return read("kuberay.yaml")[1]["spec"]


def groups(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]


@pytest.mark.parametrize("place", FIELDS)
def test_a_ray_job_has_only_fields_of_its_definition(job: dict[str, Any], place: str) -> None:
    found: Any = job
    for name in filter(None, place.split(".")):
        found = found[name]
    for one in found if isinstance(found, list) else [found]:
        assert set(one) <= FIELDS[place]


def test_a_ray_job_runs_the_locked_ray_in_one_image_with_a_token(job: dict[str, Any]) -> None:
    cluster = job["rayClusterSpec"]
    assert cluster["rayVersion"] == LOCKED["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert len({container["image"] for group in groups(job) for container in group["template"]["spec"]["containers"]}) == 1


def test_a_ray_job_continues_a_run_that_outlives_its_pods(job: dict[str, Any]) -> None:
    claims = [one["metadata"]["name"] for one in read("kuberay.yaml") if one["kind"] == "PersistentVolumeClaim"]
    words = shlex.split(job["entrypoint"])
    assert words[:2] == ["vigc", "run"]
    assert "--resume" in words
    run_dir = Path(words[words.index("--run-dir") + 1])
    for group in groups(job):
        pod = group["template"]["spec"]
        kept = {volume["name"] for volume in pod["volumes"] if volume.get("persistentVolumeClaim", {}).get("claimName") in claims}
        for container in pod["containers"]:
            mounts = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in kept]
            assert [path for path in mounts if run_dir.is_relative_to(path) and Path(words[2]).is_relative_to(path)]
            assert container["resources"]["requests"] == container["resources"]["limits"], "Ray takes the limits for what there is"


# ---- SkyPilot, `ray up`


def test_the_skypilot_task_has_known_keys_and_starts_scripts_that_are_there() -> None:
    (task,) = read("skypilot.yaml")
    assert set(task) <= TASK_KEYS
    used = {*re.findall(r"\$\{?(\w+)", task["setup"] + task["run"]), "RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert {*task["envs"], *task["secrets"]} == {name for name in used if not name.startswith("SKYPILOT_")}
    assert (ROOT / task["envs"]["RECIPE"]).is_file()
    assert os.access(ROOT / re.findall(r"cluster/launch/\S+", task["run"])[0], os.X_OK)


def test_the_cluster_of_ray_up_fits_rays_schema() -> None:
    (config,) = read("ray-up.yaml")
    filled = prepare_config(config)
    validate_config(filled)
    assert filled["head_node_type"] in filled["available_node_types"]
    scripts = [word for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]] for word in command.split()]
    assert {Path(word).name for word in scripts if word.startswith("/opt/vigc-loop/")} == {"start_node.sh"}


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_a_script_can_be_parsed_and_executed(script: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True, timeout=20)
    assert os.access(LAUNCH / script, os.X_OK)


# ---- Docker


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        yield name, rest


def test_the_image_has_a_python_that_the_project_supports() -> None:
    python = next(rest.partition("=")[2] for name, rest in instructions() if name == "ARG" and rest.startswith("PYTHON="))
    assert f"{python}.1" in SpecifierSet(PROJECT["project"]["requires-python"])


def test_the_image_gets_every_package_and_what_its_commands_read() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    commands = [rest for name, rest in instructions() if name == "RUN"]
    locks = {name for command in commands for name in re.findall(r"\S+\.lock", command)}
    assert packages | locks | {PROJECT["project"]["readme"]} <= allowed
    assert [name for name in allowed if not (ROOT / name).exists()] == []
    modules = {module for command in commands for module in re.findall(r"python -m (\S+)", command)}
    assert modules
    assert [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()] == []
    assert {word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]} - {"."} <= allowed


def test_the_stages_of_the_image_and_those_that_are_asked_for_exist() -> None:
    stages = [rest.split()[2] for name, rest in instructions() if name == "FROM"]
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert [base for base in bases if base not in stages and not base.startswith("python:")] == []
    asked = re.findall(r"--target (\w+)", "".join(path.read_text() for path in (ROOT / "Dockerfile", *LAUNCH.iterdir()) if path.is_file()))
    assert {"cpu", "gpu"} == set(asked)
    assert set(asked) <= set(stages)


def test_packages_of_the_image_are_those_of_the_lock_and_of_the_project() -> None:
    commands = [rest for name, rest in instructions() if name == "RUN"]
    named = {name for command in commands for names in re.findall(r"\^\(?([\w|]+)\)?==", command) for name in names.split("|")}
    assert named == {"setuptools", "wheel", "uv", "torch"}
    assert named <= LOCKED.keys()
    (vllm,) = PROJECT["project"]["optional-dependencies"]["gpu"]
    assert any(f'"{vllm}"' in command for command in commands)
    assert f'"{vllm}"' in read("skypilot.yaml")[0]["setup"]
