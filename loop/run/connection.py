"""Connects a run to Ray."""

from __future__ import annotations

from contextlib import AbstractContextManager

from cluster.resources.connect import ClusterInfo, connected
from loop.config.engine_config import ClusterConfig
from loop.credentials import masked


def connected_for(cluster: ClusterConfig, run_uri: str) -> AbstractContextManager[ClusterInfo]:
    """Join the cluster of a config or start a local Ray, whose temp folder belongs to the run at `run_uri`; see `connected`. A process that
    is connected stays connected."""
    return connected(
        cluster.address, num_cpus=cluster.num_cpus, temp_dir=None, timeout_s=cluster.start_timeout_s, dashboard=cluster.dashboard,
        owner=masked(run_uri), may_be_empty=cluster.node_wait_s > 0,
    )  # fmt: skip
