"""The `vllm` engine: continuous batching and prefix caching, in process, on GPUs, or on a CPU with vLLM's CPU build.

Greedy outputs in float32 equal the `transformers` engine's. A sampled row has its own seed, but the last bits of its
log-probabilities depend on its batch, as with all continuous batching: repeated runs agree to about 1e-5.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from actors.engines.adapters.files import Adapter, write_adapter
from actors.engines.base import Attestation, Completion, Probe, Request, Sampling, Score, WeightUpdate
from actors.engines.errors import EngineError, SwapError, UnfitModelError, WeightMismatchError
from actors.engines.guard import difference_from, refusal
from actors.engines.preloading import Preloader, load_update, require_one_source, verify, verify_base, verify_manifest
from actors.engines.probe import difference_from_probe
from actors.engines.prompting import BlankImage, Prompter
from actors.engines.shared_memory import remove_when_ended
from actors.engines.stream import Offer
from actors.engines.vllm.feeding import Feeder, Prompt
from actors.engines.vllm.options import TOLD_TOKENS, VllmOptions
from actors.engines.weights import digest_of, manifest_of_checkpoint, num_bytes_in, read_checkpoint
from actors.folders import local_path
from actors.processors import generation_end_ids

_ADAPTER_ID = 1
_DRAIN_S = 60.0
_RPC_S = 600.0


class VllmEngine:
    """Implements `actors.engines.base.Engine` with vLLM. One per process, because vLLM keeps process-wide state."""

    def __init__(self, model: str | Path, options: VllmOptions) -> None:
        """Construct the engine. It serves only after its first swap, since its weights are not attested before.

        Args:
            model: folder of an image-text-to-text model with safetensors weights.
            options: options of the engine.

        Raises:
            ValueError: the model or an option is not supported.
            EngineError: vLLM cannot start.
        """
        self._folder = Path(model)
        self._manifest = manifest_of_checkpoint(self._folder)
        self._base_digest = ""
        self._adapter_rank = options.adapter_rank
        self._lora_request: Any = None
        self._preloader = Preloader(self._load)
        self._prompter = Prompter(model)
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        self._end_ids = self._prompter.end_ids(generation_end_ids(model), getattr(config.get_text_config(), "eos_token_id", None))
        self._weight_version = ""
        self._fits = False
        """Whether the engine has computed what its model computes by itself."""
        self._can_sleep, self._asleep = options.sleeps, False
        if options.on_cpu:
            _prepare_cpu(options.num_threads, in_checkpoint_layout=options.attest != "probe")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler runs in this process and ends with the actor
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._vllm: Any = importlib.import_module("vllm")
        self._lora: Any = importlib.import_module("vllm.lora.request")
        self._native: Any = importlib.import_module("actors.engines.vllm.native")  # needs vLLM and registers its extensions
        if options.tensor_parallel_size > 1:
            remove_when_ended(os.getpid())
        given = self._fitted(str(model), options)
        try:
            self._llm: Any = self._vllm.LLM(str(model), **given)
        except (RuntimeError, OSError) as error:
            raise EngineError(f"vLLM cannot serve {model}: {error}") from error
        self._llm.llm_engine.renderer.mm_processor.info.get_hf_processor().image_processor = self._prompter.processor.image_processor
        self._feeder = Feeder(self._llm, options.image_workers, options.batch_size)
        self._rpc("die_with_parent", os.getpid())
        self._banned_ids = self._prompter.banned_ids(int(config.image_token_id), self._end_ids)
        self._rpc("ban_tokens", self._banned_ids)
        self._shares_memory = options.tensor_parallel_size == 1
        self._places = self._rpc("find_places", self._manifest)[0] if self._shares_memory and options.attest != "probe" else None
        if self._places is None and (options.attest == "digest" or (options.attest == "auto" and self._shares_memory)):
            raise UnfitModelError(f"the weights of {model} are not served in their checkpoint's layout; set engine.attest to probe")

    @property
    def weight_version(self) -> str:
        return self._weight_version

    @property
    def features_depend_on_text(self) -> bool:
        return False

    @property
    def llm(self) -> Any:
        """vLLM's own object, for measurements."""
        return self._llm

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, skip_bad_images: bool = False) -> list[Completion]:
        seeds = _seeds(sampling, len(requests))
        params = [self._params(sampling, request.form, seed) for request, seed in zip(requests, seeds, strict=True)]
        prompts = [self._prompt(self._prompter.render(request), request) for request in requests]
        outputs = self._generate(prompts, params, skip_bad_images=skip_bad_images)
        return [
            self._prompter.skipped(self._weight_version) if output is None else self._completion(output.outputs[0], sampling.stop)
            for output in outputs
        ]

    def score(self, requests: Sequence[Request], continuations: Sequence[str], *, blank_image: bool = False) -> list[Score]:
        told = [len(self._prompter.token_ids(self._prompter.render(request))) for request in requests]
        read = [self._prompter.render_answered(*pair) for pair in zip(requests, continuations, strict=True)]
        seen = [replace(request, image=BlankImage(request.image.size), image_key="") if blank_image else request for request in requests]
        prompts = [self._prompt(*pair) for pair in zip(read, seen, strict=True)]
        num_said = [len(prompt.token_ids) - before for prompt, before in zip(prompts, told, strict=True)]
        outputs = self._prompt_logprobs(prompts, read_prefix_cache=True)
        # Tokens from the prefix cache have no log-probabilities: if these are needed, the prompt is read again.
        again = [
            row for row, (output, said) in enumerate(zip(outputs, num_said, strict=True))
            if said and output.num_cached_tokens >= len(output.prompt_token_ids) - said
        ]  # fmt: skip
        reread = self._prompt_logprobs([prompts[row] for row in again], read_prefix_cache=False)
        for row, output in zip(again, reread, strict=True):
            outputs[row] = output
        return [Score(_logprob_of_tail(output, said), said, self._weight_version) for output, said in zip(outputs, num_said, strict=True)]

    def preload(self, update: WeightUpdate) -> None:
        self._preloader.preload(update)

    def swap(self, update: WeightUpdate) -> Attestation:
        started = time.perf_counter()
        tensors, offer = self._preloader.take(update)
        self._weight_version = ""  # nothing is served from here on unless all steps succeed
        try:
            self._drain(_DRAIN_S)
            self._wake("weights")
            if update.adapter is None:
                self._apply(update, tensors, offer)
            else:
                self._apply_adapter(update.adapter)
            self._wake("kv_cache")  # after the weights: loading them takes extra memory for a while
            self._asleep = False
            self._reset_caches()
            self._attest(update, tensors)
        except UnfitModelError:
            raise
        except Exception as error:  # vLLM raises whatever its layers raise, and any error leaves the weights undefined
            raise SwapError(f"weights {update.version} could not be applied: {error}") from error
        self._weight_version = update.version
        return Attestation(update.version, update.digest, num_bytes_in(self._manifest), time.perf_counter() - started)

    def sleep(self) -> None:
        if not self._can_sleep:
            raise EngineError("this vLLM engine was created without sleep mode; set its option `sleeps`")
        if self._asleep:
            return
        self._weight_version = ""
        try:
            self._drain(_DRAIN_S)
            self._reset_caches()
            # Level 1 keeps the weights in main memory. The next swap overwrites them, but level 2 would also drop tensors that are not
            # parameters and are in no checkpoint.
            self._llm.sleep(level=1)
        except Exception as error:  # vLLM raises whatever its layers raise
            raise EngineError(f"the engine could not be put to sleep: {error}") from error
        self._asleep, self._base_digest = True, ""

    def _wake(self, tag: str) -> None:
        """If asleep, have vLLM allocate one of its two kinds of memory again."""
        if self._asleep:
            self._llm.wake_up(tags=[tag])

    def _fitted(self, model: str, options: VllmOptions) -> dict[str, Any]:
        """Keyword arguments of `vllm.LLM` for a model.

        Raises:
            UnfitModelError: vLLM would run it in another way than it runs by itself.
        """
        given = options.for_vllm()
        if not options.on_cpu:
            return given
        config = self._vllm.EngineArgs(model, dtype=options.dtype).create_model_config()
        if config.is_mm_prefix_lm:
            raise refusal("vllm", config.hf_config.model_type, "its image tokens attend to each other, which on a CPU vLLM cannot do")
        # vLLM keeps prefixes of models with recurrent layers only if it may read prompts in chunks.
        return given | {"enable_prefix_caching": not config.is_hybrid}

    # ---- requests

    def _params(self, sampling: Sampling, form: str, seed: int | None) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            logprobs=0,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            stop_token_ids=list(self._end_ids),
            detokenize=bool(sampling.stop),
            structured_outputs=self._vllm.sampling_params.StructuredOutputsParams(regex=form) if form else None,
        )

    def _prompt(self, text: str, request: Request) -> Prompt:
        return Prompt(self._prompter.token_ids(text), request.image, request.image_key)

    def _generate(self, prompts: Sequence[Prompt], params: Sequence[Any], *, skip_bad_images: bool = False) -> list[Any]:
        """vLLM's outputs, in order; None for a bad image that is skipped. See `Feeder.run`."""
        if self._asleep:
            raise EngineError("the engine is asleep; swap weights to wake it")
        return self._feeder.run(prompts, params, self._lora_request, skip_bad_images=skip_bad_images)

    def _prompt_logprobs(self, prompts: Sequence[Prompt], *, read_prefix_cache: bool) -> list[Any]:
        params = self._vllm.SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, skip_reading_prefix_cache=not read_prefix_cache
        )
        return self._generate(prompts, [params] * len(prompts))

    def _follow(self, requests: Sequence[Request], tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of requests and given tokens; see `actors.engines.guard.Follow`. vLLM can only be told to write one token again
        and again, and tells the most likely ones."""
        num_rows, num_tokens = tokens.shape
        found = torch.full((num_rows, num_tokens + 1, self._llm.model_config.get_vocab_size()), torch.nan)
        found[..., self._banned_ids] = -torch.inf
        told = {"temperature": 0.0, "max_tokens": num_tokens + 1, "ignore_eos": True, "logprobs": TOLD_TOKENS, "detokenize": False}
        params = [self._vllm.SamplingParams(allowed_token_ids=[token], **told) for token in tokens[:, 0].tolist()]
        prompts = [self._prompt(self._prompter.render(request), request) for request in requests]
        for row, output in zip(found, self._generate(prompts, params), strict=True):
            for step, logprobs in zip(row, output.outputs[0].logprobs, strict=True):
                step[list(logprobs)] = torch.tensor([one.logprob for one in logprobs.values()])
        return found

    def _completion(self, output: Any, stop: Sequence[str]) -> Completion:
        ids = list(output.token_ids)
        logprobs = [found[token].logprob for found, token in zip(output.logprobs, ids, strict=True)]
        ended = bool(ids) and ids[-1] in self._end_ids
        return self._prompter.completion(ids[:-1] if ended else ids, logprobs, ended=ended, stop=stop, weight_version=self._weight_version)

    # ---- the swap

    def _load(self, update: WeightUpdate) -> tuple[dict[str, torch.Tensor], Offer | None]:
        """The update's verified tensors; for a stream its sender's offer, whose digest the sender has verified. Tensors are hashed here and
        not when they are served, because that may not be possible (sharded, packed), and preloading hashes while the engine serves."""
        require_one_source(update)
        if update.adapter is not None:
            self._verify_adapter(update, update.adapter)
            return {}, None
        if self._adapter_rank:
            raise WeightMismatchError(f"update {update.version} replaces whole weights, and the engine was started to swap adapters alone")
        if update.stream is not None:
            offer = update.stream.offer(update.digest)
            verify_manifest(update, offer.manifest, self._manifest)
            return {}, offer
        tensors = load_update(update)
        verify(update, tensors, self._manifest)
        return tensors, None

    def _verify_adapter(self, update: WeightUpdate, adapter: Adapter) -> None:
        if adapter.matrices and adapter.rank > self._adapter_rank:
            raise WeightMismatchError(
                f"update {update.version} is an adapter of rank {adapter.rank}, and the engine was started for ranks up to "
                f"{self._adapter_rank}; start it with adapter_rank {adapter.rank}"
            )
        if not self._asleep:
            verify_base(update, adapter, self._digest_of_base())

    def _digest_of_base(self) -> str:
        """Digest of the weights that the engine was started with, computed once: of the served ones if they can be read back, else of
        their checkpoint."""
        if self._base_digest:
            return self._base_digest
        if self._places is None:
            self._base_digest = digest_of(read_checkpoint(self._folder))
        else:
            dropped = self._manifest.keys() - self._places.keys()
            unserved = {name: tensor for name, tensor in read_checkpoint(self._folder).items() if name in dropped} if dropped else {}
            self._base_digest = self._rpc("served_digest", self._places, unserved)[0]
        return self._base_digest

    def _drain(self, timeout_s: float) -> None:
        """Finish requests that a failed call has left behind."""
        engine, deadline = self._llm.llm_engine, time.monotonic() + timeout_s
        while engine.has_unfinished_requests():
            if time.monotonic() > deadline:
                raise SwapError(f"requests were still running after {timeout_s:g} s")
            engine.step()

    def _apply(self, update: WeightUpdate, tensors: Mapping[str, torch.Tensor], offer: Offer | None) -> None:
        if offer is not None:
            self._native.receive(update.stream, offer, update.digest, self._rpc)
            return
        source = tensors if self._shares_memory or update.checkpoint is None else local_path(update.checkpoint)
        if self._places is None:
            self._rpc("reload", source)
            return
        for missing in self._rpc("load_in_place", source):
            if missing:
                raise SwapError(f"nothing was loaded into {missing[0]}")

    def _apply_adapter(self, adapter: Adapter) -> None:
        """Load an adapter in place of the served one, which vLLM adds to the products of the untouched weights."""
        engine = self._llm.llm_engine
        if not adapter.matrices:
            engine.remove_lora(_ADAPTER_ID)
            self._lora_request = None
            return
        with tempfile.TemporaryDirectory(prefix="vigc-adapter-") as scratch:
            folder = Path(scratch) / "adapter"
            write_adapter(folder, adapter)
            if not engine.add_lora(self._lora.LoRARequest("adapter", _ADAPTER_ID, str(folder), load_inplace=True)):
                raise SwapError("vLLM did not load the adapter")
        # It is the only adapter, so it stays loaded and the path is not read again.
        self._lora_request = self._lora.LoRARequest("adapter", _ADAPTER_ID, str(folder))

    def _reset_caches(self) -> None:
        """Drop what the old weights computed: keys and values of prompts, and encoded images."""
        if not self._llm.reset_prefix_cache():
            raise SwapError("the prefix cache is in use")
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.reset_mm_cache()

    def _attest(self, update: WeightUpdate, tensors: Mapping[str, torch.Tensor]) -> None:
        """Check that the served weights are the verified ones: bytewise if they can be read back, or by their digest if they came over a
        stream; and by the update's probe.

        Raises:
            UnfitModelError: the engine does not compute what the model computes by itself.
            SwapError: the weights are others, or this cannot be checked.
        """
        if self._places is not None:
            self._compare(update, tensors, self._places)
        if update.probe is not None:
            self._check_probe(update.probe)
        elif self._places is None:
            raise SwapError(f"update {update.version} has no probe, and the served weights cannot be read back; set engine.attest to probe")

    def _compare(self, update: WeightUpdate, tensors: Mapping[str, torch.Tensor], places: Mapping[str, Any]) -> None:
        if update.adapter is not None:
            self._attest_adapter(update, update.adapter)
        elif update.stream is not None:
            dropped = update.stream.fetch(self._manifest.keys() - places.keys())
            if (digest := self._rpc("served_digest", places, dropped)[0]) != update.digest:
                raise SwapError(f"the served weights have digest {digest}; {update.digest} was prepared")
        elif different := self._rpc("find_difference", tensors, places)[0]:
            raise SwapError(f"{different} differs from the weights that were sent")

    def _attest_adapter(self, update: WeightUpdate, adapter: Adapter) -> None:
        if adapter.matrices and (different := self._rpc("find_adapter_difference", adapter.matrices, adapter.scale)[0]):
            raise SwapError(f"the served adapter differs from the one that was sent: {different}")
        if (digest := replace(adapter, base_digest=self._digest_of_base()).digest) != update.digest:
            raise SwapError(f"the served weights have digest {digest}; {update.digest} was prepared")

    def _check_probe(self, probe: Probe) -> None:
        """Where the served bytes are right, or vLLM has just loaded them for the first time, a difference is the engine's way to compute;
        else the weights are damaged."""
        difference = difference_from(probe.expected, self._follow) or difference_from_probe(self, probe)
        if difference and (self._places is not None or not self._fits):
            raise refusal("vllm", probe.expected.model_type, difference)
        if difference:
            raise SwapError(difference)
        self._reset_caches()  # which a request that has failed may keep in use
        self._fits = True

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        return self._llm.collective_rpc(method, timeout=_RPC_S, args=arguments)


def _prepare_cpu(num_threads: int, *, in_checkpoint_layout: bool) -> None:
    """Set what vLLM's CPU build reads from the environment at import, and the weight layout of its linear layers."""
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # else compiling the first log-probabilities takes half a minute
    if in_checkpoint_layout:
        operators: Any = importlib.import_module("vllm._custom_ops")
        # Weights packed for oneDNN can be neither overwritten in place nor read back; torch's own kernels do not pack them.
        operators._supports_onednn = False


def _seeds(sampling: Sampling, num_rows: int) -> list[int | None]:
    """A separate seed for every row, by its position; greedy rows need none."""
    if sampling.temperature == 0:
        return [None] * num_rows
    return [int(seed) >> 1 for seed in np.random.SeedSequence(sampling.seed).generate_state(num_rows, np.uint64)]


def _logprob_of_tail(output: Any, num_tokens: int) -> float:
    """Log-probability summed over the last tokens of a prompt."""
    if not num_tokens:
        return 0.0
    rows = zip(output.prompt_logprobs[-num_tokens:], output.prompt_token_ids[-num_tokens:], strict=True)
    return sum(found[token].logprob for found, token in rows)
