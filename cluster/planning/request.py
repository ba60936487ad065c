"""What a run needs: actors, and the resources of each."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.planning.packing import BundleKind, NodeResources, pack


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Resources requested by a run."""

    num_engines: int
    num_filters: int
    trainer_ranks: int
    cpus_per_actor: int
    """CPUs of an engine or a trainer rank; if colocated, of their common bundle."""
    use_gpus: bool
    """One GPU for each engine and each trainer rank; if colocated, for each bundle."""
    colocated: bool
    gpus_per_engine: int = 1
    """GPUs that share an engine's weights, if GPUs are used."""

    @property
    def kinds(self) -> list[BundleKind]:
        """The bundles: if colocated, of engines with ranks and filters; otherwise of engines, of ranks, and of filters."""
        bundle = _bundle(self.cpus_per_actor, self.use_gpus)
        if self.colocated:
            return [BundleKind(bundle, max(self.num_engines, self.trainer_ranks))]
        engine = _bundle(self.cpus_per_actor, self.use_gpus * self.gpus_per_engine)
        return [BundleKind(engine, self.num_engines), BundleKind(bundle, self.trainer_ranks), BundleKind(_bundle(1, 0), self.num_filters)]

    @property
    def bundles(self) -> tuple[dict[str, float], ...]:
        return tuple(dict(kind.bundle) for kind in self.kinds for _ in range(kind.count))

    def packed(self, nodes: tuple[NodeResources, ...]) -> tuple[int, ...] | None:
        """The index of the node of each bundle; `None` if they do not fit. Colocated bundles are together, because the ranks in them talk
        to each other; others are spread."""
        return pack(self.kinds, nodes, together=self.colocated)


def _bundle(cpus: int, gpus: int) -> dict[str, float]:
    # Whole GPUs per bundle, even if its actors use less: with fractions Ray could pack two engines on one GPU.
    return {"CPU": float(cpus), "GPU": float(gpus)} if gpus else {"CPU": float(cpus)}
