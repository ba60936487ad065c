"""The trainer: one job on one rank, with DeepSpeed. A plain class; `actors.trainer` runs it in Ray actors."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from typing import Any

import torch

from actors.engines.adapters.files import read_adapter
from actors.engines.families import ENCODER_DECODER, has_encoder_decoder
from actors.folders import local_path
from actors.images import ImageSource
from actors.process.network import LOOPBACK
from actors.processors import generation_end_ids, load_processor
from actors.training.adapters import (
    adapter_of,
    adapter_state,
    add_adapters,
    is_adapter,
    load_adapter,
    merged,
    require_adapters_alone,
)
from actors.training.batches import Batch, BatchBuilder, Row
from actors.training.checkpoint import finished_result, group_of, interpolate, load_model, write_checkpoint
from actors.training.distributed import deepspeed_config, join_process_group, max_over_ranks, sum_over_ranks
from actors.training.dpo import PairBatch, PairRows, PairTraining, pair_training, without_dropout
from actors.training.early_stop import EarlyStopping, split_by_image
from actors.training.inputs.encoding import ConversationEncoder
from actors.training.inputs.forward import summed_loss
from actors.training.inputs.packing import Packer, check_packing
from actors.training.job import Hyperparameters, Progress, TrainingJob, TrainingResult
from actors.training.losses import TrainingLog
from actors.training.order import MEGABATCH_BATCHES, cut_by_tokens, global_batches, pack_by_tokens, rank_share
from actors.training.pixels import Augmentation, PixelReader, blank_inputs
from actors.training.prefetch import prefetch
from actors.training.samples import lengths_of
from actors.training.steps.best import best_weights
from actors.training.steps.checkpoints import StepCheckpoints, step_checkpoints
from policies.records import TrainingSample

_JOIN_TIMEOUT_S = 120.0


def run_local(
    job: TrainingJob, source: ImageSource, threads: int = 1, on_progress: Callable[[Progress], None] | None = None
) -> TrainingResult:
    """Train in this process, as a group of one rank.

    Args:
        job: what to train.
        source: provides the samples' images.
        threads: torch's intra-op threads.
        on_progress: called after each step, and after each pass that measures the reference of pairs.

    Raises:
        ValueError: the job does not fit its checkpoint, its images or its output folder.
        TrainerError: the loss is not finite.
    """
    torch.set_num_threads(threads)
    join_process_group(0, 1, LOOPBACK, 0, LOOPBACK, None, _JOIN_TIMEOUT_S)
    result = Trainer(job, source, on_progress=on_progress).run()
    assert result is not None, "rank 0 has the result"
    return result


class Trainer:
    """One rank's part of a job. The process must have joined its group, and every rank runs the same job."""

    def __init__(
        self,
        job: TrainingJob,
        source: ImageSource,
        *,
        rank: int = 0,
        world_size: int = 1,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Check the split of the batch; `run` loads everything else.

        Raises:
            ValueError: the global batch cannot be split over the ranks and micro-batches, or `early_stop` holds out too many samples.
        """
        self._job = job
        self._hyper = job.hyper
        self._source = source
        self._rank = rank
        self._world_size = world_size
        self._on_progress = on_progress
        self._micro_batch_size = job.hyper.micro_batch_size(world_size)
        self._num_passes_varies = job.hyper.max_micro_batch_tokens is not None or len(job.pairs) > 0
        self._samples, self._held_out = job.samples, list[TrainingSample]()
        if job.hyper.early_stop is not None:
            self._samples, self._held_out = split_by_image(job.samples, job.hyper.early_stop.num_samples, job.seed)

    def run(self) -> TrainingResult | None:
        """Train and write the checkpoint; returns the result on rank 0, `None` on others. The result of a finished job is reused.

        Raises:
            ValueError: the job does not fit its checkpoint, its images or its output folder.
            TrainerError: the loss is not finite, or no sample has a token to learn.
        """
        finished = finished_result(self._job) if self._rank == 0 else None
        if sum_over_ranks(torch.tensor([0.0 if finished is None else 1.0]), self._world_size).item() > 0:
            return finished
        started = time.perf_counter()
        torch.manual_seed(self._job.seed)
        model = load_model(local_path(self._job.base_checkpoint))
        _prepare(model, self._hyper)
        if self._hyper.lora is not None and self._job.adapter is not None:
            load_adapter(model, read_adapter(local_path(self._job.adapter)), self._hyper.lora)
        start = {name: tensor.detach().clone() for name, tensor in adapter_state(model.named_parameters()).items()}
        builder = self._batch_builder()
        engine, optimizer = self._initialize(model)
        try:
            if self._job.adapter_base:
                require_adapters_alone(model)
            log, stopping = self._train(engine, optimizer, builder)
            state = self._state(model) if stopping is None else stopping.best_state()
        finally:
            engine.destroy()
            del engine, optimizer
            gc.collect()  # the engine and its hooks form reference cycles; a rank outlives many of them
        if self._rank != 0:
            return None
        result = log.result(time.perf_counter() - started)
        if stopping is None:
            return replace(self._write(model, state, start, result), steps=log.steps)
        written = self._write(model, state, start, replace(result, held_out_losses=stopping.losses))
        stopping.forget(keep_best=False)
        return replace(written, steps=log.steps)

    def _state(self, model: Any) -> dict[str, torch.Tensor]:
        return _gathered_state(model, self._hyper.zero_stage, keep=self._rank == 0)

    def _write(self, model: Any, state: dict[str, torch.Tensor], start: dict[str, torch.Tensor], result: TrainingResult) -> TrainingResult:
        """Write the checkpoint of a trained state, whose adapters started from `start`."""
        job, lora, share, adapter = self._job, self._hyper.lora, self._hyper.interpolation, None
        if job.adapter_base and lora is not None:
            interpolate(adapter_state(state.items()), start, share)
            adapter = adapter_of(state, lora, job.adapter_base)
        if lora is not None:
            state = merged(state, lora)
        if adapter is None and share < 1:
            interpolate(state, load_model(local_path(job.base_checkpoint)).state_dict(), share)
        return write_checkpoint(job, model, state, result, adapter)

    def _batch_builder(self) -> BatchBuilder:
        base = local_path(self._job.base_checkpoint)
        processor = load_processor(base)
        tokenizer = processor.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        augmentation = Augmentation(self._hyper, processor.image_processor, self._job.seed)
        encoder = ConversationEncoder(processor, self._hyper.max_tokens, generation_end_ids(base))
        return BatchBuilder(encoder, PixelReader(processor.image_processor, self._source), augmentation, pad_id)

    def _initialize(self, model: Any) -> tuple[Any, torch.optim.Optimizer]:
        import deepspeed

        optimizer = torch.optim.AdamW(_parameter_groups(model, self._hyper), betas=self._hyper.betas, fused=True)
        config = deepspeed_config(model, self._hyper, self._micro_batch_size, varies=self._num_passes_varies)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, dist_init_required=False, config=config)
        if self._world_size == 1 and self._hyper.zero_stage == 0:
            engine.enable_backward_allreduce = False  # nothing to reduce; saves the flat copies
        return engine, optimizer

    def _train(self, engine: Any, optimizer: torch.optim.Optimizer, builder: BatchBuilder) -> tuple[TrainingLog, EarlyStopping | None]:
        hyper, samples = self._hyper, self._samples
        order = global_batches(
            lengths_of(samples), hyper.batch_size, hyper.num_steps, self._job.seed, length_grouping=hyper.length_grouping
        )
        log = TrainingLog(hyper, len(samples), self._world_size)
        collate = self._collate(engine, builder)
        num_steps_of_a_pass = math.ceil(len(samples) / hyper.batch_size) + MEGABATCH_BATCHES  # upper bound
        steps = self._step_checkpoints()
        stopping = self._early_stopping(builder)
        # before a step checkpoint replaces the weights of the reference
        pairs = pair_training(self._job, builder, engine, self._held_out, log, self._on_progress, self._rank, self._world_size)
        if steps is not None:
            position = steps.restore(engine)
            log.restore(position)
            if stopping is not None:
                stopping.restore(position.get("early_stop", {}))
        with prefetch(self._reading(order, builder, pairs, log.resumed_from_step)) as reading:
            for step, indices, rows, pair_rows in reading:
                if stopping is not None and stopping.is_over:
                    break
                log.skip((indices[row.position], row.skip) for row in rows if row.skip is not None)
                batches = [collate(part) for part in self._micro_batches(rows)]
                num_tokens, num_pairs = self._count_targets(batches, pair_rows)
                # weight decay and momentum would change the weights even without target tokens
                factor = learning_rate_factor(step, hyper) if num_tokens else 0.0
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * factor
                pair_batches = pairs.batches(pair_rows, num_pairs) if pairs is not None and num_tokens and num_pairs else []
                loss, pair_sums, norm = self._step(engine, batches, num_tokens, pair_batches)
                log.add(loss, num_tokens, pair_sums, hyper.learning_rate * factor, norm)
                if self._on_progress is not None:
                    self._on_progress(log.progress())
                if stopping is not None:
                    stopping.after_step(step + 1, engine, lambda: self._state(engine.module))
                    if steps is None or self._job.steps_between == 0:
                        stopping.forget()
                if log.num_target_tokens == 0:
                    if step + 1 >= num_steps_of_a_pass:
                        break
                elif steps is not None and self._is_checkpointed(step + 1):
                    log.require_readable_images()  # a step checkpoint above the limit could never be continued
                    steps.save(step + 1, engine, log.position() | ({} if stopping is None else {"early_stop": stopping.position()}))
                    if stopping is not None:
                        stopping.forget()
        log.close()
        log.require_target_tokens()
        return log, stopping

    def _early_stopping(self, builder: BatchBuilder) -> EarlyStopping | None:
        """Its batches have as many conversations as the micro-batches of training, and stay in memory."""
        rule, size = self._hyper.early_stop, self._micro_batch_size
        if rule is None:
            return None
        rows = builder.plain_rows(enumerate(self._held_out))
        batches = [builder.batch(rows[start : start + size]) for start in range(0, len(rows), size)]
        best = best_weights(self._job.unfinished, self._job.fingerprint())
        return EarlyStopping(rule, self._hyper.num_steps, batches, best, self._rank, self._world_size)

    def _collate(self, engine: Any, builder: BatchBuilder) -> Callable[[list[Row]], Batch]:
        """How rows become a batch; packing is first checked on the model."""
        if not self._hyper.packing:
            return builder.batch
        packer = Packer(builder, engine.module)
        check_packing(engine.module, builder, packer, engine.device)
        return packer.batch

    def _reading(
        self, order: Iterator[list[int]], builder: BatchBuilder, pairs: PairTraining | None, first: int
    ) -> Iterator[tuple[int, list[int], list[Row], PairRows]]:
        """For each step from `first` on: the step, the indices of its global batch, and this rank's rows and pairs."""
        numbers_of_pairs = repeat(list[int]()) if pairs is None else pairs.order()
        for step, (indices, numbers) in islice(enumerate(zip(order, numbers_of_pairs, strict=False)), first, None):
            share = rank_share(indices, self._rank, self._world_size)
            rows = builder.rows(((position, self._samples[indices[position]]) for position in share), step)
            yield step, indices, rows, PairRows([], []) if pairs is None else pairs.read(numbers)

    def _step_checkpoints(self) -> StepCheckpoints | None:
        if self._job.steps_folder is None:
            return None
        return step_checkpoints(self._job.steps_folder, self._job.fingerprint(), self._rank, self._world_size)

    def _is_checkpointed(self, num_steps: int) -> bool:
        between = self._job.steps_between
        return between > 0 and num_steps % between == 0 and num_steps < self._hyper.num_steps

    def _micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """This rank's rows of a step by forward pass; every rank has the same number of passes, as gradients are reduced."""
        limit = self._hyper.max_micro_batch_tokens
        if limit is None:
            return [rows[start : start + self._micro_batch_size] for start in range(0, len(rows), self._micro_batch_size)]
        cut, widths = cut_by_tokens, [row.width for row in rows]
        if self._hyper.packing:
            cut, widths = pack_by_tokens, [len(row.text.ids) for row in rows]
        num_passes = max_over_ranks(len(cut(widths, limit)), self._world_size)
        return [[rows[index] for index in part] for part in cut(widths, limit, num_passes)]

    def _count_targets(self, batches: list[Batch], pairs: PairRows) -> tuple[int, int]:
        """Target tokens and usable pairs over all ranks in this step; every rank must call this."""
        counted = torch.tensor([sum(batch.num_target_tokens for batch in batches), sum(pairs.is_usable)], dtype=torch.int64)
        num_tokens, num_pairs = sum_over_ranks(counted, self._world_size).tolist()
        return num_tokens, num_pairs

    def _step(
        self, engine: Any, batches: list[Batch], num_tokens: int, pair_batches: list[PairBatch]
    ) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        """One update on the `num_tokens` target tokens and on the pairs of all ranks.

        Returns:
            this rank's part of the global batch's mean loss (the parts sum to it); the sums of `PairBatch.loss` if there are pairs; and the
            norm of all gradients before clipping, `None` if DeepSpeed does not compute it.
        """
        part, pair_sums, norm = torch.zeros((), device=engine.device), torch.zeros(4, device=engine.device), None
        last = len(batches) + len(pair_batches) - 1
        for index, batch in enumerate(batches):
            self._begin_pass(engine, is_last=index == last)
            loss = summed_loss(engine, batch, engine.device) / max(1, num_tokens)
            part += loss.detach()
            norm = self._finish_pass(engine, loss, is_last=index == last)
        if not pair_batches:
            return part, None, norm
        with without_dropout(engine.module):
            for index, pairs in enumerate(pair_batches, len(batches)):
                self._begin_pass(engine, is_last=index == last)
                loss, sums = pairs.loss(engine)
                pair_sums += sums
                norm = self._finish_pass(engine, loss, is_last=index == last)
        return part, pair_sums, norm

    def _begin_pass(self, engine: Any, *, is_last: bool) -> None:
        if self._num_passes_varies:
            engine.set_gradient_accumulation_boundary(is_last)

    def _finish_pass(self, engine: Any, loss: torch.Tensor, *, is_last: bool) -> Any:
        """Returns the norm of all gradients after the last pass."""
        norm = None
        # DeepSpeed averages gradients over ranks: the factor turns the mean into the sum
        engine.backward(loss * self._world_size, scale_wrt_gas=False)
        if is_last and self._hyper.zero_stage == 0:  # which keeps no norm
            gradients = (parameter.grad for parameter in engine.module.parameters())
            norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        engine.step()
        return engine.get_global_grad_norm() if is_last and self._hyper.zero_stage else norm


def learning_rate_factor(step: int, hyper: Hyperparameters) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then cosine decay to the minimum ratio."""
    num_warmup = round(hyper.warmup_share * hyper.num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, hyper.num_steps - num_warmup)
    floor = hyper.min_learning_rate_ratio
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def _parameter_groups(model: Any, hyper: Hyperparameters) -> list[dict[str, Any]]:
    """Freeze `frozen` groups; group the rest by learning rate and weight decay. The schedule scales `peak_lr`."""
    present: set[str] = set()
    found: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = group_of(name)
        present.add(group)
        parameter.requires_grad_(group not in hyper.frozen or is_adapter(name))
        if parameter.requires_grad:
            found.setdefault((group, parameter.ndim > 1), []).append(parameter)
    absent = sorted({*hyper.frozen, *hyper.learning_rate_groups} - present)
    if absent or not found:
        said = f"no parameters of {absent}" if absent else "nothing to train"
        raise ValueError(f"the model has {said}: it has {sorted(present)}, of which {sorted(hyper.frozen)} are frozen")
    rates = {group: hyper.learning_rate_groups.get(group, hyper.learning_rate) for group, _ in found}
    return [
        {"params": parameters, "lr": rates[group], "peak_lr": rates[group], "weight_decay": hyper.weight_decay if is_matrix else 0.0}
        for (group, is_matrix), parameters in found.items()
    ]


def check_fits(model: Any, image_processor: Any, hyper: Hyperparameters) -> None:
    """Check hyperparameters against a model, which may be on the meta device and is changed, and its image processor.

    Raises:
        ValueError: the language model is an encoder-decoder, a parameter group or a layer for adapters does not exist, nothing would be
            trained, the model cannot checkpoint its activations, or the pixels cannot be augmented.
    """
    if has_encoder_decoder(model.config):
        raise ValueError(f"it {ENCODER_DECODER}")
    _prepare(model, hyper)
    _parameter_groups(model, hyper)
    augmentation = Augmentation(hyper, image_processor, seed=0)
    if augmentation.is_on:
        augmentation.apply(blank_inputs(image_processor).tensors["pixel_values"], step=0, position=0)


def _prepare(model: Any, hyper: Hyperparameters) -> None:
    if hyper.attention != "auto":
        try:
            model.set_attn_implementation(hyper.attention)
        except (ImportError, ValueError) as error:  # not installed, or not of this model
            raise ValueError(f"attention {hyper.attention} cannot be used: {error}; install what it needs, or set it to auto") from error
    if hyper.lora is not None:
        add_adapters(model, hyper.lora)
    if hyper.activation_checkpointing:
        checkpoint_activations(model)


def checkpoint_activations(model: Any) -> None:
    """Recompute every layer's activations in the backward pass; raises `ValueError` if the model does not support it."""
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"{type(model).__name__} cannot checkpoint its activations; set activation_checkpointing to false")
    # reentrant checkpointing would lose the weight gradients of layers whose inputs need none, as after a frozen vision tower
    model.gradient_checkpointing_enable({"use_reentrant": False})


def _gathered_state(model: Any, zero_stage: int, *, keep: bool) -> dict[str, torch.Tensor]:
    """The full state dict on the CPU if `keep`; every rank must call this, since stage 3 gathers each parameter."""
    from deepspeed.runtime.zero import GatheredParameters

    state: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # a tied weight has several names but must stay one tensor to be written once
    for name, tensor in model.state_dict(keep_vars=True).items():
        with GatheredParameters([tensor], enabled=zero_stage == 3 and isinstance(tensor, torch.nn.Parameter)):
            if keep:
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
                state[name] = copies[id(tensor)]
    return state
