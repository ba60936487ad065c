"""The generator: VIG. Turns an image and an instruction into a question and an answer in the model's own words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from actors.engines.base import Completion, Engine, FinishReason, Request, Sampling
from actors.shards import Shard, ShardImages
from policies.generation.instructions import GenerationTask, parse_vig, vig_form
from policies.records import Record


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """How VIG samples."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 96
    view: str = "raw"
    """The view that generator and corrector see, as a name for `actors.views.find_view`."""
    structured: bool = False
    """Constrain the output to VIG's form."""


class Generator:
    """Runs VIG (VIGC, section 3.1) on an engine it borrows."""

    def __init__(self, engine: Engine, options: GeneratorOptions, images: ShardImages) -> None:
        self._engine = engine
        self._options = options
        self._images = images

    def generate(self, shard: Shard) -> list[Record]:
        """One record per task, in order. A bad image yields a rejected record and does not stop the shard."""
        options = self._options
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, seed=shard.seed)
        completions = self._engine.complete([self._request(task) for task in shard.tasks], sampling, skip_bad_images=True)
        records = (self._blank_record(shard, index) for index in range(len(shard.tasks)))
        return [self._with(completion, task, record) for record, task, completion in zip(records, shard.tasks, completions, strict=True)]

    def _request(self, task: GenerationTask) -> Request:
        form = vig_form(task.answer_prefix) if self._options.structured else ""
        image, key = self._images.image(task.image_id), self._images.key(task.image_id)
        return Request(image, task.instruction, task.answer_prefix, image_key=key, form=form)

    def _with(self, completion: Completion, task: GenerationTask, record: Record) -> Record:
        if completion.finish_reason is not FinishReason.BAD_IMAGE:
            return _filled(record, task.answer_prefix, completion)
        error = self._images.error(task.image_id)
        return replace(record.rejected(error.rejects_as), reason_detail=error.reason)

    def _blank_record(self, shard: Shard, index: int) -> Record:
        task = shard.tasks[index]
        return Record(
            record_id=f"r{shard.round}-s{shard.index:05d}-{index:04d}",
            round=shard.round,
            shard=shard.index,
            image_id=task.image_id,
            question_type=task.question_type,
            instruction=task.instruction,
            seed=shard.seed,
            generator_weight_version=self._engine.weight_version,
        )


def _filled(record: Record, answer_prefix: str, completion: Completion) -> Record:
    text = f"{answer_prefix} {completion.text}" if answer_prefix else completion.text
    pair = parse_vig(text)
    return replace(
        record,
        generated_text=text,
        question=pair.question if pair else "",
        original_answer=pair.answer if pair else "",
        generated_logprob=completion.logprob,
        generated_num_tokens=completion.num_logprob_tokens,
        generator_weight_version=completion.weight_version,
    )
