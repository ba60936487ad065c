"""The engine protocol, through which every model runs. An engine is a plain object inside an actor and owns one copy of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from actors.engines.adapters.files import Adapter
    from actors.engines.stream import WeightStream
    from actors.engines.weights import TensorSpec
    from actors.folders import Folder
    from actors.images import LazyImage


class FinishReason(StrEnum):
    STOP = "stop"  # the model's end token or a stop string
    LENGTH = "length"  # max_new_tokens reached
    BAD_IMAGE = "bad_image"  # the image could not be read, and nothing was generated


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt about one image."""

    image: Image.Image | LazyImage
    """The pixels, or where to get them. An engine opens a `LazyImage` shortly before it needs the pixels, in a thread of its own, and
    does not keep them. It does not open one whose features it has cached."""
    prompt: str
    """The user's text; the engine applies the model's chat template."""
    answer_prefix: str = ""
    """The assistant's text so far; the completion continues it."""
    image_key: str = ""
    """Key for caching image features; equal keys mean equal pixels. Empty: do not cache."""
    form: str = ""
    """A regular expression that the completion must match, on engines with structured output (`vllm`). Empty: any text."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. `temperature` 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Strings that end a row once its text contains one; the stop string is kept."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The model's output. Log-probabilities are natural and at temperature 1."""

    text: str
    token_ids: tuple[int, ...]
    """Generated tokens, without the end token."""
    logprob: float
    """Summed over `token_ids` and, if the model ended by itself, its end token."""
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
class Expected:
    """What a model computes by itself on some prompts; see `actors.engines.guard`."""

    model_type: str
    requests: tuple[Request, ...]
    tokens: torch.Tensor
    """Tokens that continue the prompts, [rows, tokens]."""
    logits: torch.Tensor
    """At the end of each prompt and after each token, [rows, tokens + 1, vocabulary]."""
    tolerance: float
    """Largest difference of log-probabilities in a correct engine, relative to their spread."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Texts and their log-probabilities under an update's weights, computed outside the engine that is to serve these weights."""

    requests: tuple[Request, ...]
    continuations: tuple[str, ...]
    logprobs: tuple[float, ...]
    """Summed over each continuation."""
    tolerance: float
    """Largest difference per token between two correct engines."""
    expected: Expected
    """What an engine that serves these weights must compute, if it fits the model's family."""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """New weights for an engine: exactly one of `checkpoint`, `tensors`, `stream` and `adapter` is given."""

    version: str
    digest: str
    """SHA-256 over names, shapes, dtypes and bytes, as `actors.engines.weights.digest_of` computes it; of an adapter, its own `digest`."""
    manifest: Mapping[str, TensorSpec]
    """Of the whole weights, also where they are an adapter's base with the adapter."""
    checkpoint: Folder | None = None
    """A Hugging Face folder with safetensors."""
    tensors: Mapping[str, torch.Tensor] | None = None
    stream: WeightStream | None = None
    """Where the engine's workers receive the weights from."""
    adapter: Adapter | None = None
    """Applied to the base weights that the engine was started with, which stay as they are."""
    probe: Probe | None = None
    """Checked if given; engines that cannot read back their served weights need it."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """An engine's report on the weights that it serves after a swap, derived from the served weights, not from the update."""

    version: str
    digest: str
    num_bytes: int
    seconds: float


class Engine(Protocol):
    """Runs one model. Concurrent calls are not safe, except of `preload`: the actor serialises them."""

    @property
    def weight_version(self) -> str:
        """Version of the served weights; empty if there are none."""
        ...

    @property
    def features_depend_on_text(self) -> bool:
        """Whether image features depend on the text (a Q-Former): an answer then changes if it is requested anew after every
        sentence."""
        ...

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, skip_bad_images: bool = False) -> list[Completion]:
        """One completion per request, in order. Some engines (`transformers` on the CPU) guarantee the same completions for the
        same requests, sampling and weights. The random numbers of a row depend on its place among the requests.

        Args:
            requests: of any number; the images of a part of them are in memory at the same time.
            sampling: how to decode.
            skip_bad_images: a request whose image cannot be read gets an empty completion with the finish reason `BAD_IMAGE`.

        Raises:
            BadImageError: an image cannot be read, and `skip_bad_images` is False.
            PolicyError: the code of a view failed.
        """
        ...

    def score(self, requests: Sequence[Request], continuations: Sequence[str], *, blank_image: bool = False) -> list[Score]:
        """Log-probability of each continuation after its request; `blank_image` replaces the pixels by mid-grey. Raises for images as
        `complete` does."""
        ...

    def preload(self, update: WeightUpdate) -> None:
        """Load and verify an update ahead of its swap, without touching the served weights; may run in another thread while the
        engine serves. Errors are raised by the swap."""
        ...

    def swap(self, update: WeightUpdate) -> Attestation:
        """Serve the update's weights from now on. Loads and verifies them first if they are not preloaded, and clears the preloaded update.
        Wakes a sleeping engine.

        Raises:
            WeightMismatchError: names, shapes, dtypes or, if it is verified ahead, the digest do not fit; nothing has changed.
            SwapError: applying the weights failed, or the served weights do not have the update's digest; the engine must be killed.
            UnfitModelError: the engine serves the weights, but does not compute what the model computes by itself.
        """
        ...

    def sleep(self) -> None:
        """Release the device memory of weights and caches. Until the next completed swap, `complete` and `score` raise
        `EngineError`. Does nothing if the engine already sleeps.

        Raises:
            EngineError: the engine cannot sleep.
        """
        ...
