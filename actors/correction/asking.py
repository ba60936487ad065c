"""Builds and sends the requests of correction to the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from actors.engines.base import Completion, Engine, FinishReason, Request, Sampling
from actors.shards import ShardImages
from actors.views import PerturbedImage, PictureTransform
from policies.correction.evidence import Evidence
from policies.generation.knowledge import vic_prompt
from policies.records import Record


@dataclass(frozen=True, slots=True)
class CorrectionClient:
    """An engine, the images of a shard, and how they are looked at again."""

    engine: Engine
    images: ShardImages
    max_new_tokens: int
    evidence: Evidence
    transform: PictureTransform | None = None
    """`evidence.view_transforms`, built."""

    def request(self, record: Record, answer_prefix: str = "", prompt: str | None = None) -> Request:
        """The record's question, or another prompt about its image."""
        asked = vic_prompt(record.question_type, record.question) if prompt is None else prompt
        return Request(self.images.image(record.image_id), asked, answer_prefix, image_key=self.images.key(record.image_id))

    def greedy(self, requests: list[Request], stop: tuple[str, ...] = ()) -> list[Completion]:
        """One greedy completion per request."""
        return self.engine.complete(requests, Sampling(self.max_new_tokens, stop=stop))

    def on_views(self, requests: list[Request], seed: int) -> list[Completion]:
        """One completion per request, which is about another view of an image."""
        if not self.evidence.view_temperature:
            return self.greedy(requests)
        return self.engine.complete(requests, Sampling(self.max_new_tokens, self.evidence.view_temperature, seed=seed))

    def another_view(self, request: Request, seed: int) -> Request:
        """The request with another view of its image."""
        view = PerturbedImage(request.image, self.evidence.view_noise, seed, self.evidence.view_shift, self.transform)
        return replace(request, image=view, image_key="")

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
