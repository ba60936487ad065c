"""What a config asks of the cluster."""

from __future__ import annotations

from cluster.resources.plan import ResourceRequest
from loop.config.run_config import RunConfig


def resource_request(config: RunConfig) -> ResourceRequest:
    """Engines, filters and trainer ranks of a run, and the resources of each."""
    cluster = config.cluster
    return ResourceRequest(
        cluster.num_engines, cluster.num_filters, cluster.trainer_ranks, cluster.cpus_per_actor, cluster.use_gpus, cluster.colocated,
        config.engine.tensor_parallel_size,
    )  # fmt: skip
