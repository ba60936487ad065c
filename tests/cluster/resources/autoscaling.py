"""A Ray cluster that adds nodes on demand: Ray's own autoscaler, with its node provider for tests, which starts nodes on this machine.

    python -m tests.cluster.resources.autoscaling ADDRESS

asks such a cluster for engines and prints what came of it, as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util import placement_group_table

from cluster.planning.packing import NodeResources
from cluster.planning.request import ResourceRequest
from cluster.resources.connect import connected
from cluster.resources.placement import EngineRange, reserve
from cluster.resources.plan import plan_resources
from tests.cluster.workers import wait_while
from tests.paths import ROOT

ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled"}
CPUS_PER_NODE, MAX_NODES, MOST = 2, 4, 3
STORE_BYTES = 100 * 1024**2
_REQUEST = ResourceRequest(num_engines=1, num_filters=1, trainer_ranks=1, cpus_per_actor=1, use_gpus=False, colocated=True)


@contextmanager
def autoscaling_head() -> Iterator[str]:
    """Address of a head without CPUs whose autoscaler adds nodes of two. Unlike `ray.cluster_utils.AutoscalingCluster`, it ends no other
    Ray of this machine."""
    with tempfile.TemporaryDirectory(prefix="vg", ignore_cleanup_errors=True) as folder:
        with socket.create_server(("", 0)) as free:
            address = f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
        config = Path(folder, "config.json")
        config.write_text(json.dumps(_config(address)))
        options = {
            "port": address.rpartition(":")[2], "num-cpus": 0, "temp-dir": f"{folder}/ray", "object-store-memory": STORE_BYTES,
            "include-dashboard": "false", "autoscaling-config": config,
        }  # fmt: skip
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        head = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())], cwd=ROOT, stdout=subprocess.DEVNULL,
            env={**ENVIRONMENT, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        )  # fmt: skip
        try:
            yield address
        finally:
            processes = psutil.Process(head.pid).children(recursive=True)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait(20)
            psutil.wait_procs(processes, timeout=20)


def _config(address: str) -> dict[str, Any]:
    node = {"resources": {"CPU": CPUS_PER_NODE, "object_store_memory": STORE_BYTES}, "node_config": {}, "max_workers": MAX_NODES}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "test",
        "max_workers": MAX_NODES,
        "provider": {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True, "disable_node_updaters": True},
        "available_node_types": {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0}, "worker": node},
        "head_node_type": "ray.head.default", "upscaling_speed": 1.0, "idle_timeout_minutes": 5, "auth": {}, "docker": {},
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        **{f"{name}_commands": [] for name in commands},
    }  # fmt: skip


def ask(address: str) -> dict[str, Any]:
    """Begins with one engine and waits until there are `MOST`."""
    with connected(address, num_cpus=None, temp_dir=None, timeout_s=60, may_be_empty=True) as info:
        found: dict[str, Any] = {"cpus": info.cpus}
        with reserve(
            plan_resources([NodeResources("to come", CPUS_PER_NODE)], _REQUEST), 60, EngineRange(1, MOST, is_asked_for=True)
        ) as placement:
            found["first"] = placement.num_engines
            wait_while(lambda: placement.find_places() < MOST, bound_s=60)
            time.sleep(3)  # of the autoscaler, which looks every second: it adds no more
            found |= {"engines": placement.find_places(), "nodes": sum(node["Alive"] for node in ray.nodes()) - 1}
        found["asked"] = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
        return found


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1])))
