"""Feeds prompts to vLLM while it computes, so that only the images of a few prompts are in memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from actors.engines.errors import EngineError
from actors.images import BadImageError, LazyImage
from actors.look_ahead import LookAhead, Planned, looking_ahead


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text about one image."""

    token_ids: list[int]
    image: Image.Image | LazyImage
    image_key: str
    """Under which vLLM caches the image; empty: it hashes the pixels."""


class Feeder:
    """Runs prompts on a `vllm.LLM` with its own `enqueue` and `step`: its `generate` takes all prompts, with their images, before it
    computes the first.

    Twice as many prompts as vLLM decodes together are in flight, so that some always wait in vLLM when others end.
    """

    def __init__(self, llm: Any, image_workers: int, batch_size: int) -> None:
        self._llm = llm
        self._image_workers, self._batch_size = image_workers, batch_size

    def run(self, prompts: Sequence[Prompt], params: Sequence[Any], lora_request: Any, *, skip_bad_images: bool) -> list[Any]:
        """vLLM's outputs, in the order of the prompts; None for a bad image, if they are skipped. After an error none of the prompts is
        left in vLLM.

        Raises:
            ValueError: vLLM refuses a prompt.
            BadImageError: an image cannot be read.
            EngineError: vLLM failed in another way.
        """
        added: list[str] = []
        rows: list[int] = []
        outputs: list[Any] = []
        try:
            with looking_ahead(self._planned(prompts), self._image_workers, self._batch_size) as ahead:
                for row, prompt in enumerate(prompts):
                    given = self._given(row, prompt, ahead, skip_bad_images)
                    if given is None:
                        continue
                    with _named_errors():
                        added += self._llm.enqueue([given], params[row], lora_request, use_tqdm=False)
                    rows.append(row)
                    outputs += self._stepped(2 * self._batch_size)
            outputs += self._stepped(1)
        except BaseException:
            self._llm.llm_engine.abort_request(added, internal=True)
            raise
        in_order = sorted(outputs, key=lambda output: int(output.request_id))  # as `generate` sorts them: ids count upwards
        found = dict(zip(rows, in_order, strict=True))
        return [found.get(row) for row in range(len(prompts))]

    def _stepped(self, num_in_flight: int) -> Iterator[Any]:
        """Outputs of vLLM's steps until fewer than so many prompts are in flight."""
        engine = self._llm.llm_engine
        while engine.get_num_unfinished_requests() >= num_in_flight:
            with _named_errors():
                outputs = engine.step()
            yield from (output for output in outputs if output.finished)

    def _given(self, row: int, prompt: Prompt, ahead: LookAhead, skip_bad_images: bool) -> dict[str, Any] | None:
        """A prompt as vLLM takes it: without pixels if it has the image in its cache. None if the image is bad and skipped."""
        given: dict[str, Any] = {"prompt_token_ids": prompt.token_ids}
        if prompt.image_key:
            given["multi_modal_uuids"] = {"image": prompt.image_key}
        try:
            image = None if self._is_kept(prompt) else ahead.open(_key(row, prompt), prompt.image)
        except BadImageError:
            if skip_bad_images:
                return None
            raise
        return given | {"multi_modal_data": {"image": [image]}}

    def _planned(self, prompts: Sequence[Prompt]) -> Planned:
        """The images whose pixels vLLM needs."""
        planned: set[Hashable] = set()
        for row, prompt in enumerate(prompts):
            key = _key(row, prompt)
            if key not in planned and not self._is_kept(prompt):
                planned.add(key)
                yield key, prompt.image

    def _is_kept(self, prompt: Prompt) -> bool:
        """Whether vLLM has the processed image in its cache, and therefore needs no pixels."""
        cache = self._llm.renderer.mm_processor_cache
        return bool(prompt.image_key) and cache is not None and cache.is_cached_item(prompt.image_key)


def _key(row: int, prompt: Prompt) -> Hashable:
    return prompt.image_key or row


@contextmanager
def _named_errors() -> Iterator[None]:
    """A `ValueError` of vLLM is the prompt's fault, any other error the engine's."""
    try:
        yield
    except (RuntimeError, OSError, AssertionError) as error:
        raise EngineError(f"vLLM failed: {error}") from error
