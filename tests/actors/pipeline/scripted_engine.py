"""An engine whose replies a test writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from actors.engines.base import Attestation, Completion, FinishReason, Request, Sampling, Score, WeightUpdate
from actors.images import BadImageError, opened

Reply = str | tuple[str, FinishReason]


def image_id_of(request: Request) -> str:
    """The image that a request is about; empty for a perturbed view."""
    return request.image_key.partition("/")[2]


@dataclass
class ScriptedEngine:
    """Implements `Engine`: writes what a function of the request says, a log-probability of -0.1 a word."""

    reply: Callable[[Request], Reply]
    weight_version: str = "v1"
    features_depend_on_text: bool = False
    asked: list[tuple[Request, Sampling]] = field(default_factory=list)
    scored: list[tuple[Request, str, bool]] = field(default_factory=list)

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, skip_bad_images: bool = False) -> list[Completion]:
        return [self._asked(request, sampling, skip_bad_images) for request in requests]

    def _asked(self, request: Request, sampling: Sampling, skip_bad_images: bool) -> Completion:
        try:
            opened(request.image)
        except BadImageError:
            if not skip_bad_images:
                raise
            return Completion("", (), 0.0, 0, FinishReason.BAD_IMAGE, self.weight_version)
        self.asked.append((request, sampling))
        return self._completion(self.reply(request))

    def _completion(self, reply: Reply) -> Completion:
        text, finish = (reply, FinishReason.STOP) if isinstance(reply, str) else reply
        num = len(text.split()) + 1
        return Completion(text, tuple(range(num - 1)), -0.1 * num, num, finish, self.weight_version)

    def score(self, requests: Sequence[Request], continuations: Sequence[str], *, blank_image: bool = False) -> list[Score]:
        self.scored += [(request, text, blank_image) for request, text in zip(requests, continuations, strict=True)]
        return [Score(-1.5 * len(text.split()), len(text.split()), self.weight_version) for text in continuations]

    def preload(self, update: WeightUpdate) -> None:
        """Nothing can be loaded ahead: it holds no weights."""

    def swap(self, update: WeightUpdate) -> Attestation:
        self.weight_version = update.version
        return Attestation(update.version, update.digest, 0, 0.0)

    def sleep(self) -> None:
        self.weight_version = ""
