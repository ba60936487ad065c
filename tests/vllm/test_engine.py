"""The vLLM engine says what transformers says, before and after swaps, and nothing stale."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from actors.engines.base import Completion, FinishReason, Request, Sampling
from actors.engines.transformers import TransformersEngine
from actors.engines.vllm.engine import VllmEngine
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, QuestionType, parse_vig, vig_form
from tests.vllm.worlds import changed, requests, seed_weights, update_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

REQUESTS = requests(64)
LONG_PREFIX = "There is a small red ring at the top left. There is a large blue star at the top right. There is a small green cross"
CLOSE = 1e-3


def assert_equal(engine: VllmEngine, reference: TransformersEngine, asked: list[Request]) -> None:
    sampling = Sampling(48)
    for ours, theirs in zip(engine.complete(asked, sampling), reference.complete(asked, sampling), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert (ours.text, ours.finish_reason, ours.num_logprob_tokens) == (theirs.text, theirs.finish_reason, theirs.num_logprob_tokens)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=CLOSE)


def test_greedy_equals_transformers_before_a_swap_and_after_each_of_three(engine: VllmEngine, reference: TransformersEngine) -> None:
    assert len(REQUESTS) >= 64
    said = set()
    for number in range(4):
        weights = changed(seed_weights(), number) if number else seed_weights()
        update = update_of(weights, f"r{number}")
        attested, expected = engine.swap(update), reference.swap(update)
        assert (attested.version, attested.digest, attested.num_bytes) == (f"r{number}", update.digest, expected.num_bytes)
        assert engine.weight_version == f"r{number}"
        assert_equal(engine, reference, REQUESTS)
        said.add(tuple(one.token_ids for one in engine.complete(REQUESTS, Sampling(48))))
    assert len(said) == 4, "the swaps changed nothing"


def test_images_of_other_sizes_are_seen_as_transformers_sees_them(engine: VllmEngine, reference: TransformersEngine) -> None:
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in ((50, 70), (300, 200), (48, 9))
    ]
    reference.swap(update_of(seed_weights(), "seed"))
    assert_equal(engine, reference, [Request(image, "What is in the image?") for image in images])


def test_answers_go_on_where_they_stand_and_stop_at_sentences(engine: VllmEngine, reference: TransformersEngine) -> None:
    reference.swap(update_of(seed_weights(), "seed"))
    instruction = CANONICAL_INSTRUCTIONS[QuestionType.DETAIL]
    asked = [Request(one.image, instruction, "There is", image_key=one.image_key) for one in REQUESTS[:16]]
    sampling = Sampling(48, stop=(".", "!"))
    ours, theirs = engine.complete(asked, sampling), reference.complete(asked, sampling)
    assert [(one.text, one.token_ids) for one in ours] == [(one.text, one.token_ids) for one in theirs]
    assert all(one.text.endswith(".") and one.text.count(".") == 1 and one.finish_reason is FinishReason.STOP for one in ours)


@pytest.mark.parametrize("blank_image", [False, True])
def test_scores_equal_transformers_also_of_texts_in_the_prefix_cache(
    engine: VllmEngine, reference: TransformersEngine, blank_image: bool
) -> None:
    reference.swap(update_of(seed_weights(), "seed"))
    texts = [one.text for one in engine.complete(REQUESTS, Sampling(48))]
    expected = reference.score(REQUESTS, texts, blank_image=blank_image)
    for _ in range(2):  # the second time every block has been seen before
        found = engine.score(REQUESTS, texts, blank_image=blank_image)
        assert [one.num_tokens for one in found] == [one.num_tokens for one in expected]
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=CLOSE)


def test_a_sampled_row_has_a_seed_of_its_own(engine: VllmEngine) -> None:
    one_image = [REQUESTS[-1]] * 12
    first = engine.complete(one_image, Sampling(48, temperature=1.0, seed=1))
    again = engine.complete(one_image, Sampling(48, temperature=1.0, seed=1))
    other = engine.complete(one_image, Sampling(48, temperature=1.0, seed=2))
    assert [one.token_ids for one in first] == [one.token_ids for one in again] != [one.token_ids for one in other]
    assert len({one.token_ids for one in first}) > 1
    assert engine.complete(one_image[:3], Sampling(48, temperature=1.0, seed=1))[2].token_ids == first[2].token_ids


def test_more_sampled_prompts_than_are_read_at_once(engine: VllmEngine) -> None:
    """Together they exceed a step's budget of tokens; a seeded row must not be read in two steps on a CPU."""
    longest = engine.llm.model_config.max_model_len
    words = "What is at the center? " * (longest // 8)
    asked = [Request(one.image, words, image_key=one.image_key) for one in REQUESTS[:64]]
    num_read = len(engine._prompter.token_ids(engine._prompter.render(asked[0]))) * len(asked)
    assert num_read > engine.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert len(engine.complete(asked, Sampling(8, temperature=1.0, seed=1))) == 64


def test_a_form_is_forced_on_what_is_written(engine: VllmEngine) -> None:
    """Asked for something else, the model writes VIG's form only where it must."""
    prompt, sampling = "What is at the center?", Sampling(96, temperature=1.0, seed=4)

    def parsed(form: str, prefix: str = "") -> tuple[int, int]:
        """How many texts came to an end by themselves, and how many of these VIG's parser reads."""
        written = engine.complete([Request(one.image, prompt, prefix, form=form) for one in REQUESTS[:24]], sampling)
        ended = [one for one in written if one.finish_reason is FinishReason.STOP]
        return len(ended), sum(parse_vig(f"{prefix} {one.text}") is not None for one in ended)

    assert parsed("") == (24, 0)
    for prefix in ("", "Question: Where"):
        num_ended, num_parsed = parsed(vig_form(prefix), prefix)
        assert num_ended == num_parsed > 2


def test_the_transformers_engine_says_that_it_cannot_force_a_form(reference: TransformersEngine) -> None:
    with pytest.raises(ValueError, match="take the vllm engine"):
        reference.complete([Request(REQUESTS[0].image, "Ask.", form="a+")], Sampling(4))


# ---- what a swap leaves out of date unless it is reset


def sees(name: str) -> bool:
    return name.startswith(("vision_tower", "multi_modal_projector"))


def ask(engine: VllmEngine | TransformersEngine) -> list[Completion]:
    """The same images and the same prompts, longer than a block of the prefix cache."""
    asked = [Request(one.image, one.prompt, LONG_PREFIX, image_key=one.image_key) for one in REQUESTS[:16]]
    return engine.complete(asked, Sampling(8))


@pytest.mark.parametrize(
    ("left_out", "is_stale"), [("", False), ("prefix", True), ("encoder", True), ("prefix and encoder", True), ("multimodal", False)]
)
def test_each_cache_that_is_not_reset_answers_with_the_old_weights(
    engine: VllmEngine, reference: TransformersEngine, monkeypatch: pytest.MonkeyPatch, left_out: str, is_stale: bool
) -> None:
    """New eyes before an old language model: whatever an old cache still holds is all that the image is to it. Only the multimodal
    cache holds nothing that weights change (pixels)."""
    before = ask(engine)
    update = update_of(changed(seed_weights(), 7, sees, by=0.3), "new eyes")
    reference.swap(update)
    right = ask(reference)
    assert not_close(before, right) > 12, "the swap must change what is said"
    if "prefix" in left_out:
        monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
    if "encoder" in left_out:
        monkeypatch.setattr(engine.llm.llm_engine, "reset_encoder_cache", lambda: None)
    if left_out == "multimodal":
        monkeypatch.setattr(engine.llm, "reset_mm_cache", lambda: None)

    engine.swap(update)

    after = ask(engine)
    if is_stale:
        assert not_close(after, right) > 12
        assert left_out == "encoder" or [one.token_ids for one in after] == [one.token_ids for one in before]
    else:
        assert not_close(after, right) == 0
    monkeypatch.undo()
    engine.swap(update)  # with all resets what was stale is gone
    assert not_close(ask(engine), right) == 0


def not_close(some: list[Completion], others: list[Completion]) -> int:
    """Rows that differ."""
    pairs = zip(some, others, strict=True)
    return sum(one.token_ids != other.token_ids or abs(one.logprob - other.logprob) > CLOSE for one, other in pairs)
