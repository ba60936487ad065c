"""Options of the `vllm` engine, and what they are for vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

LOAD_FORMAT = "vigc"
"""vLLM's name for `actors.engines.vllm.worker.CheckpointLoader`."""
_WORKER = "actors.engines.vllm.native.ReceivedWeights"
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks for which vLLM can reserve memory."""
TOLD_TOKENS = 20
"""Most likely tokens whose log-probabilities vLLM tells; its own default limit."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Options of the engine."""

    batch_size: int = 64
    """Rows decoded together."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    device: str = "cpu"
    """`cpu`, or `cuda`: the GPUs that the process can see."""
    num_threads: int = 1
    """torch's threads per worker on a CPU."""
    image_workers: int = 1
    """Threads that open the next images while vLLM computes."""
    tensor_parallel_size: int = 1
    """Devices (on a CPU: processes) that share one copy of the weights."""
    max_model_len: int | None = None
    """Maximum length of a prompt with its completion in tokens; `None` is the model's own."""
    block_size: int | None = None
    """Tokens per prefix-cache block; `None` is 32 on a CPU and vLLM's choice on GPUs."""
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory for weights, activations and the key-value cache."""
    cpu_kv_cache_gib: float = 0.5
    """Size of the key-value cache on a CPU."""
    enforce_eager: bool = False
    """Disable CUDA graphs and compilation; always so on a CPU."""
    attest: Literal["auto", "digest", "probe"] = "auto"
    """`digest` compares every served tensor with what was sent and needs the checkpoint's layout; `probe` compares log-probabilities
    with those of the update's probe; `auto` is `probe` if several devices share the weights, else `digest`. A probe is always checked
    if the update has one."""
    sleeps: bool = False
    """Whether the engine can sleep: weights and key-value cache are then in memory that vLLM can release (GPUs only)."""
    adapter_rank: int = 0
    """Highest rank of the adapters that the engine serves beside the weights it was started with, which it then keeps; 0: it serves none,
    and swaps whole weights."""
    adapter_targets: tuple[str, ...] = ()
    """Names of the linear layers that adapters may have matrices for."""

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    def __post_init__(self) -> None:
        if self.sleeps and self.on_cpu:
            raise ValueError("vLLM's CPU build has no sleep mode; let the engine stay awake, or take the transformers engine")
        if self.adapter_rank > ADAPTER_RANKS[-1]:
            raise ValueError(f"vLLM applies adapters up to rank {ADAPTER_RANKS[-1]}, not {self.adapter_rank}")

    def for_vllm(self) -> dict[str, Any]:
        """Keyword arguments of `vllm.LLM`."""
        options: dict[str, Any] = {
            "load_format": LOAD_FORMAT,
            "model_impl": "vllm",  # never transformers' classes inside vLLM: the check of a model asks for vLLM's own
            "dtype": self.dtype,
            "seed": 0,
            "trust_remote_code": False,
            "tensor_parallel_size": self.tensor_parallel_size,
            "distributed_executor_backend": "mp" if self.tensor_parallel_size > 1 else "uni",
            "worker_extension_cls": _WORKER,
            "enable_prefix_caching": True,
            "max_num_seqs": self.batch_size,
            "max_model_len": self.max_model_len,
            "limit_mm_per_prompt": {"image": 1},
            "logprobs_mode": "raw_logprobs",
        }
        if self.adapter_rank:
            options |= {
                "enable_lora": True,
                "max_loras": 1,
                "max_cpu_loras": 1,
                "max_lora_rank": min(rank for rank in ADAPTER_RANKS if rank >= self.adapter_rank),
                # Not all layers that vLLM can adapt: with an adapted head it cannot compute the log-probabilities of prompts.
                "lora_target_modules": [*self.adapter_targets, *(["out_proj"] if "o_proj" in self.adapter_targets else [])],
            }
        if self.on_cpu:
            return options | {
                "enforce_eager": True,
                "block_size": self.block_size or 32,
                "kv_cache_memory_bytes": int(self.cpu_kv_cache_gib * (1 << 30)),
                # A seeded row whose prompt is read in two chunks rewinds its generator, which torch does not support on a CPU.
                "enable_chunked_prefill": False,
            }
        memory = {"gpu_memory_utilization": self.gpu_memory_utilization, "enable_sleep_mode": self.sleeps}
        return options | memory | {"enforce_eager": self.enforce_eager, "block_size": self.block_size}
