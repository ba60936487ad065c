"""Connects to Ray: by default a local one on the loopback interface, or a running cluster."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services, worker
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]

from cluster.errors import AddressError, RayStartError, TimeoutExceededError, short_message
from cluster.planning.packing import NodeResources
from cluster.resources.address import ClusterAddress, answered, cluster_address
from cluster.resources.messages import ray_messages_logged
from cluster.resources.scratch import scratch_folder
from cluster.resources.watch import watched

_POLL_S = 0.5
_ONE_HOST_ENV = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """Resources of all live nodes."""

    nodes: tuple[NodeResources, ...]
    is_local: bool
    """Whether this process has started it, so that no node and no other driver joins."""

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)


@contextmanager
def connected(
    address: str | None,
    *,
    num_cpus: int | None,
    temp_dir: Path | None,
    timeout_s: float,
    dashboard: bool = False,
    object_store_bytes: int = 512 * 1024**2,
    owner: str | None = None,
    may_be_empty: bool = False,
) -> Iterator[ClusterInfo]:
    """Connects this process to Ray for the duration of a `with` block.

    Without `address` (and without `RAY_ADDRESS` in the environment), starts a local Ray that listens only on loopback. `num_cpus`,
    `temp_dir`, `dashboard`, `object_store_bytes` and `owner` configure this local Ray. Without `temp_dir`, it and its workers use a
    temp folder of `owner` (by default of this process), which is removed when it ends. A process that is already connected (a
    notebook, a test session) stays connected. The caller's SIGTERM handler stays in place. With `may_be_empty`, a cluster without any CPU
    is joined, such as an autoscaling one that has only its head.

    Raises:
        AddressError: the address is neither `HOST:PORT` nor `auto`, nothing answers there, or `num_cpus`, `temp_dir` or `dashboard` is
            given for a running cluster.
        RayStartError: a local Ray did not start.
        TimeoutExceededError: the cluster had no live node, or none with a CPU, within `timeout_s` seconds.
    """
    if ray.is_initialized():
        yield _await_nodes(time.monotonic() + timeout_s, may_be_empty)
        return
    joined = cluster_address(address)
    deadline = time.monotonic() + timeout_s
    if joined is not None:
        _refuse_local_options(str(joined), num_cpus=num_cpus, temp_dir=temp_dir, dashboard=dashboard or None)
    with ExitStack() as stack:
        folder = None if joined else temp_dir or stack.enter_context(scratch_folder(owner or f"process {os.getpid()}"))
        stack.enter_context(ray_messages_logged())
        stack.callback(ray.shutdown)
        with _sigterm_kept():
            if folder is None:
                assert joined is not None
                _join(joined, deadline)
            else:
                _start_local(num_cpus, folder, dashboard, object_store_bytes)
        stack.enter_context(watched(is_local=folder is not None))
        yield _await_nodes(deadline, may_be_empty)


def _refuse_local_options(address: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise AddressError(f"{', '.join(given)} can only be set for a local Ray; drop them, or drop the address {address}")


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the caller's SIGTERM handler: Ray's own would kill Ray's processes before the driver closes the run in order, and exit
    with the signal's number."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:
        if ended.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        if callable(handler):
            signal.signal(signal.SIGTERM, handler)


_OPTIONS: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_WORKER_ENV = {"OMP_NUM_THREADS": "1"}
"""Beside another busy process, two torch threads are many times slower than one. Actors set more threads themselves."""


def _start_local(num_cpus: int | None, temp_dir: Path, dashboard: bool, object_store_bytes: int) -> None:
    with (
        _one_host(temp_dir.absolute(), _own_token(temp_dir.absolute(), dashboard)),
        _own_process_groups(),
        nullcontext() if dashboard else _no_idle_servers(),
        _start_errors_named(),
    ):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=object_store_bytes,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(temp_dir.absolute()),
            **_OPTIONS,
        )


@contextmanager
def _start_errors_named() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # not narrower: if one of its servers is lost, Ray raises a plain `Exception`
        raise RayStartError(f"Ray does not start on this machine: {short_message(error)}") from error


@contextmanager
def _one_host(temp_dir: Path, more: dict[str, str]) -> Iterator[None]:
    """While Ray starts: disable reports and metrics, bind its servers to loopback, and let its workers inherit their environment.
    Without a runtime environment, actors run in the processes that Ray starts ahead.

    On Linux, Ray replaces a node address of 127.0.0.1 by a reachable one and then listens on every interface, unless clusters are
    disabled. The constant affects this process, the environment the processes that it starts.
    """
    settings = {
        _ONE_HOST_ENV: "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0", "TMPDIR": str(temp_dir), **_WORKER_ENV,
        **more,
    }  # fmt: skip
    tempfile.gettempdir()  # caches its result, so that this process keeps its own
    before = {name: os.environ.get(name) for name in settings}
    constant = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(settings)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _own_token(temp_dir: Path, dashboard: bool) -> dict[str, str]:
    """Give a Ray without a token its own, in its temp folder, as the home folder may be missing or not writable. The dashboard asks
    users for the token, so with it Ray writes the token where `ray get-auth-token` finds it."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()  # it may be that of another Ray
    if loader.has_token(ignore_auth_mode=True) or (dashboard and os.access(Path.home(), os.W_OK)):
        return {}
    path = temp_dir / "auth_token"
    path.touch(0o600)
    path.write_text(generate_new_authentication_token())
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


@contextmanager
def _own_process_groups() -> Iterator[None]:
    """While Ray starts, put each of its servers, with its workers, into a process group of its own. A signal to the driver's group
    (`timeout`, a terminal, a batch system) then reaches only the driver, which closes the run in order while Ray still works."""
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


@contextmanager
def _no_idle_servers() -> Iterator[None]:
    """While Ray starts, leave out servers that a Ray of one node starts and does not use: those of a dashboard, for which the start waits,
    of the autoscaler, and for the output of workers, which the driver does not print."""
    servers = {(services, "start_api_server"): (None, None), (Node, "start_monitor"): None, (Node, "start_log_monitor"): None}
    before = {(owner, name): getattr(owner, name) for owner, name in servers}
    for (owner, name), started in servers.items():
        setattr(owner, name, lambda *_, started=started, **__: started)
    try:
        yield
    finally:
        for (owner, name), start in before.items():
            setattr(owner, name, start)


def _join(address: ClusterAddress, deadline: float) -> None:
    def join() -> None:
        ray.init(address=address.value, runtime_env={"env_vars": _WORKER_ENV}, **_OPTIONS)

    answered(address, join, deadline)


def _await_nodes(deadline: float, may_be_empty: bool) -> ClusterInfo:
    while True:
        nodes = tuple(_resources_of(node) for node in ray.nodes() if node["Alive"])
        started = worker._global_node
        info = ClusterInfo(nodes, started is not None and started.is_head())
        if info.cpus or (may_be_empty and nodes):
            return info
        if time.monotonic() >= deadline:
            raise TimeoutExceededError(f"the Ray cluster shows {len(nodes)} live node(s) and no CPU; look at `ray status`")
        time.sleep(_POLL_S)


def _resources_of(node: dict[str, Any]) -> NodeResources:
    total = node["Resources"]
    return NodeResources(node["NodeManagerAddress"], total.get("CPU", 0.0), total.get("GPU", 0.0), node["NodeID"])
