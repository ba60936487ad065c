"""Builds and sends the requests of correction to the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actors.engines.base import Completion, Engine, FinishReason, Request, Sampling
from actors.shards import ShardImages
from actors.views import PerturbedImage
from policies.correction.evidence import Evidence
from policies.generation.knowledge import vic_prompt
from policies.records import Record


@dataclass(frozen=True, slots=True)
class CorrectionClient:
    """An engine and the images of a shard."""

    engine: Engine
    images: ShardImages
    max_new_tokens: int

    def request(self, record: Record, answer_prefix: str = "", prompt: str | None = None) -> Request:
        """The record's question, or another prompt about its image."""
        asked = vic_prompt(record.question_type, record.question) if prompt is None else prompt
        return Request(self.images.image(record.image_id), asked, answer_prefix, image_key=self.images.key(record.image_id))

    def greedy(self, requests: list[Request], stop: tuple[str, ...] = ()) -> list[Completion]:
        """One greedy completion per request."""
        return self.engine.complete(requests, Sampling(self.max_new_tokens, stop=stop))

    def several(
        self, requests: list[Request], num_sampled: int, temperature: float, seed: int, stop: tuple[str, ...] = ()
    ) -> list[list[Completion]]:
        """For each request the greedy completion, then `num_sampled` at `temperature`. Two engine calls."""
        sampling = Sampling(self.max_new_tokens, temperature, seed=seed, stop=stop)
        greedy = self.greedy(requests, stop)
        sampled = self.engine.complete([request for request in requests for _ in range(num_sampled)], sampling) if num_sampled else []
        return [[first, *sampled[index * num_sampled : (index + 1) * num_sampled]] for index, first in enumerate(greedy)]


def ended(completion: Completion, stop: tuple[str, ...]) -> bool:
    """Whether the model ended with its end token, not with a stop string or the token budget."""
    return completion.finish_reason is FinishReason.STOP and not (stop and completion.text.endswith(stop))


def another_view(request: Request, evidence: Evidence, seed: int) -> Request:
    """The request with another view of its image."""
    return replace(request, image=PerturbedImage(request.image, evidence.view_noise, seed, evidence.view_shift), image_key="")


def look_seed(shard_seed: int, *place: int) -> int:
    """A 63-bit seed for one look of a shard, identified by the numbers in `place`."""
    return int(np.random.SeedSequence([shard_seed, *place]).generate_state(1, np.uint64)[0]) >> 1
