"""The engine protocol: the one way to run a model. An engine is a plain object inside an actor; it owns one copy of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from actors.engines.stream import WeightStream
    from actors.engines.weights import TensorSpec


class FinishReason(StrEnum):
    STOP = "stop"  # the model's end token or a stop string
    LENGTH = "length"  # max_new_tokens reached


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt about one image."""

    image: Image.Image
    prompt: str
    """The user's text; the engine applies the model's chat template."""
    answer_prefix: str = ""
    """What the assistant has already said; the completion continues it."""
    image_key: str = ""
    """Equal keys mean equal pixels: what an engine may cache image features by. Empty: do not cache."""
    form: str = ""
    """A regular expression that the completion is made to match, on engines with structured output (`vllm`). Empty: any text."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. `temperature` 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Decoding of a row ends once its text holds one of these; the stop string is kept."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote. Log-probabilities are natural, at temperature 1, of the tokens in `token_ids`."""

    text: str
    token_ids: tuple[int, ...]
    """Generated tokens, the end token excluded."""
    logprob: float
    """Summed over `token_ids` and, when the model ended by itself, its end token."""
    num_logprob_tokens: int
    finish_reason: FinishReason
    weight_version: str

    @property
    def mean_logprob(self) -> float:
        return self.logprob / max(1, self.num_logprob_tokens)


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probability of a given continuation."""

    logprob: float
    num_tokens: int
    weight_version: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Texts, and how likely the weights of an update make them, computed apart from the engine that is to serve these weights."""

    requests: tuple[Request, ...]
    continuations: tuple[str, ...]
    logprobs: tuple[float, ...]
    """Summed over each continuation."""
    tolerance: float
    """Largest difference per token between two correct engines."""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """New weights for an engine: exactly one of `checkpoint`, `tensors` and `stream` is given."""

    version: str
    digest: str
    """SHA-256 over names, shapes, dtypes and bytes, as `actors.engines.weights.digest_of` computes it."""
    manifest: Mapping[str, TensorSpec]
    checkpoint: Path | None = None
    """A Hugging Face folder with safetensors, readable where the engine runs."""
    tensors: Mapping[str, torch.Tensor] | None = None
    stream: WeightStream | None = None
    """Where the engine's workers receive the weights from."""
    probe: Probe | None = None
    """Asked where it is given; engines that cannot read back what they serve need it."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """What an engine says of the weights that it serves after a swap: found out from what it serves, not from the update."""

    version: str
    digest: str
    num_bytes: int
    seconds: float


class Engine(Protocol):
    """Runs one model. Not safe for concurrent calls, `stage` excepted: its actor serialises them."""

    @property
    def weight_version(self) -> str:
        """Version of the weights that the next completion comes from; empty while there are none."""
        ...

    @property
    def rereads(self) -> bool:
        """Whether what the model sees of an image depends on the text it is read with (a Q-Former): an answer then changes when
        it is asked for anew after every sentence."""
        ...

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order. The same requests, sampling and weights give the same completions
        on engines that promise it (`transformers` on the CPU does)."""
        ...

    def score(self, requests: Sequence[Request], continuations: Sequence[str], *, blank_image: bool = False) -> list[Score]:
        """Log-probability of each continuation after its request; with `blank_image` the pixels are replaced by mid-grey."""
        ...

    def stage(self, update: WeightUpdate) -> None:
        """Load and verify an update ahead of its swap; may run in another thread while the engine serves. Touches nothing that is
        served. What it finds wrong is raised by the swap."""
        ...

    def swap(self, update: WeightUpdate) -> Attestation:
        """Serve the update's weights from now on. They are loaded and verified first, unless they were staged; nothing is staged
        afterwards. An engine that sleeps wakes for it.

        Raises:
            WeightMismatchError: names, shapes, dtypes or digest do not fit; nothing has changed.
            SwapError: applying failed half way; the engine must be killed.
        """
        ...

    def sleep(self) -> None:
        """Give back the memory that weights and caches take on the device. From now on `complete` and `score` are refused with an
        `EngineError`, until a swap has completed. Does nothing where the engine sleeps already.

        Raises:
            EngineError: it cannot.
        """
        ...
