"""The config sections `engine` and `cluster`: what runs the model, and where the actors run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from loop.config.sections import Section


class _EngineKeys(Section):
    """Keys that every engine has."""

    batch_size: int = Field(64, ge=1, description="rows that are decoded together")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the served weights: the model's and training.precision's"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cpu, or cuda for the GPUs that the placement group assigns")
    num_threads: int = Field(1, ge=1, description="torch threads per engine, and per process of a tensor-parallel one")
    image_workers: int = Field(
        1, ge=1, le=64, description="threads per engine that open the next images while it computes; more if it waits for photos"
    )

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"kind"})


class TransformersEngineConfig(_EngineKeys):
    """Any image-text-to-text model, on a CPU or one GPU."""

    kind: Literal["transformers"] = Field("transformers", description="engine that runs the model")

    @property
    def tensor_parallel_size(self) -> int:
        return 1

    @property
    def probed(self) -> Literal["never", "first", "always"]:
        """Which swaps are attested by a probe."""
        return "never"


class VllmEngineConfig(_EngineKeys):
    """Models that vLLM supports, on GPUs, or on a CPU with vLLM's CPU build."""

    kind: Literal["vllm"] = Field(description="engine that runs the model")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs (on a CPU: processes) that share one engine's weights")
    max_model_len: int | None = Field(None, ge=16, description="longest prompt with its completion in tokens; null is the model's own")
    block_size: int | None = Field(None, ge=1, description="tokens of a prefix-cache block; null is 32 on a CPU and vLLM's choice on GPUs")
    gpu_memory_utilization: float = Field(0.85, gt=0, lt=1, description="share of a GPU's memory that an engine takes")
    cpu_kv_cache_gib: float = Field(0.5, gt=0, description="key-value cache of an engine on a CPU, in GiB")
    enforce_eager: bool = Field(False, description="no CUDA graphs and no compilation; always so on a CPU")
    attest: Literal["auto", "digest", "probe"] = Field(
        "auto", description="what attests a swap: the served bytes, or their output on a probe; auto: bytes, if one device has them all"
    )

    @property
    def probed(self) -> Literal["never", "first", "always"]:
        """Which swaps are attested by a probe. Where bytes are compared the first swap is probed as well, because vLLM computes with the
        weights in its own way."""
        return "always" if self.attest == "probe" or self.tensor_parallel_size > 1 else "first"


def _engine(value: Any) -> Any:
    """A kind alone stands for its defaults; a mapping without a kind is the default engine."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "transformers", **value} if isinstance(value, dict) else value


EngineConfig = Annotated[Annotated[TransformersEngineConfig | VllmEngineConfig, Field(discriminator="kind")], BeforeValidator(_engine)]


class RayConfig(Section):
    """The Ray cluster that the actors run in."""

    address: str | None = Field(
        None, pattern=r"^(auto|[^/]+:\d+)$", description="Ray cluster to join, HOST:PORT or auto; null starts a local Ray on loopback"
    )
    num_cpus: int | None = Field(None, ge=1, description="CPUs of the local Ray; null takes the machine's")

    @model_validator(mode="after")
    def _local_options_are_for_a_local_ray(self) -> Self:
        given = [name for name in ("num_cpus", "dashboard") if getattr(self, name, None)]
        if self.address is not None and given:
            raise ValueError(f"{' and '.join(given)} can only be set for a local Ray; drop them, or drop the address {self.address}")
        return self


def _number_or_auto(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("a number of at least 1 is expected, or auto")


class ClusterConfig(RayConfig):
    num_engines: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = Field(
        2, description="generator actors, each with one engine; auto: as many as the cluster has room for, nodes that join later included"
    )
    max_engines: int | None = Field(
        None, ge=1, description="with num_engines auto: most engines, up to which nodes are asked for if node_wait_s is set; null: no limit"
    )
    cpus_per_actor: int = Field(1, ge=1, description="CPUs of an engine or a trainer rank; when colocated, of the bundle they share")
    use_gpus: bool = Field(False, description="one GPU for each engine and each trainer rank; when colocated, for each bundle")
    num_filters: int = Field(1, ge=1, description="shards that are filtered at the same time")
    trainer_ranks: int = Field(2, ge=1, description="DeepSpeed ranks")
    colocated: bool = Field(True, description="engines and trainer ranks take turns on the same cores or devices")
    sleep_while_training: bool = Field(
        False, description="engines give back their memory while the trainer runs, and load the weights anew afterwards (colocated)"
    )
    dashboard: bool = Field(False, description="start Ray's dashboard on loopback")
    start_timeout_s: float = Field(
        180, gt=0, description="time limit for starting Ray or an engine, and for each step of starting the trainer"
    )
    task_timeout_s: float = Field(600, gt=0, description="time limit for one shard or one evaluation task")
    swap_timeout_s: float = Field(120, gt=0, description="time limit for one weight swap")
    max_restarts: int = Field(
        3, ge=0, description="restarts allowed per engine in a round, and of the ranks in a training; moves from a lost node do not count"
    )
    max_fleet_restarts: int | None = Field(
        None,
        ge=0,
        description="restarts allowed of all engines together in a round, a lost node counts once; null: 16, or twice num_engines if more",
    )
    min_engines: int = Field(
        1,
        ge=1,
        description="engines with which a run starts on a cluster that lacks room for more, and goes on when nodes or engines are lost; "
        "with fewer it waits for start_timeout_s",
    )
    node_wait_s: float = Field(
        0,
        ge=0,
        description="longest wait at the start for nodes that are not there yet, such as those that an autoscaling cluster adds; 0: none "
        "are expected, and what the cluster is too small for is refused at once",
    )

    @model_validator(mode="after")
    def _enough_engines_can_serve(self) -> ClusterConfig:
        if self.num_engines != "auto":
            if self.max_engines is not None:
                raise ValueError(f"max_engines {self.max_engines} does nothing with num_engines {self.num_engines}; set num_engines auto")
            if self.min_engines > self.num_engines:
                raise ValueError(f"min_engines {self.min_engines} is more than num_engines {self.num_engines}; lower it")
        elif self.max_engines is not None and self.min_engines > self.max_engines:
            raise ValueError(f"min_engines {self.min_engines} is more than max_engines {self.max_engines}; lower it")
        return self

    @property
    def planned_engines(self) -> int:
        """Engines that are planned for before it is known how many more have room: with auto the fewest, and one beside each colocated
        trainer rank, which costs no room."""
        if self.num_engines != "auto":
            return self.num_engines
        beside_ranks = min(self.trainer_ranks, self.max_engines or self.trainer_ranks) if self.colocated else 0
        return max(self.min_engines, beside_ranks)

    @model_validator(mode="after")
    def _engines_sleep_where_memory_is_shared(self) -> ClusterConfig:
        if self.sleep_while_training and not self.colocated:
            raise ValueError("sleep_while_training has no effect when the trainer has its own devices; drop it, or set colocated true")
        return self
