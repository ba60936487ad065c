"""Every family decodes as its own model does, and looks at an image once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actors.engines.base import Request, Sampling, WeightUpdate
from actors.engines.prompting import Prompter
from actors.engines.reference import ReferenceModel
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from loop.config.run_config import EMBEDDED_MODEL
from tests.actors.engines.families import FAMILIES, PROMPTS, REQUESTS, by_the_model_itself, count_pixels, image_of, save_family


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(checkpoint, batch_size=3)


def test_greedy_decoding_equals_the_models_own_token_for_token(checkpoint: Path, engine: TransformersEngine) -> None:
    expected = by_the_model_itself(checkpoint, REQUESTS, 10)
    assert len(set(expected)) > 3
    assert [completion.token_ids for completion in engine.complete(REQUESTS, Sampling(10))] == expected


def test_a_score_is_the_log_probability_that_decoding_gives(checkpoint: Path, engine: TransformersEngine) -> None:
    prompter = Prompter(checkpoint)
    text = "There is a red ring."
    scores = engine.score(REQUESTS, [text] * len(REQUESTS))
    rows = []
    for request in REQUESTS:
        told = prompter.token_ids(prompter.render(request))
        rows.append(prompter.token_ids(prompter.render_answered(request, text))[len(told) :])
    said = torch.tensor(rows)
    assert set(said[:, -1].tolist()) <= set(prompter.end_ids(engine.model.generation_config.eos_token_id))
    found = engine._follow(REQUESTS, said)[:, :-1].gather(-1, said[..., None])[..., 0].sum(1)
    assert [score.num_tokens for score in scores] == [said.shape[1]] * len(REQUESTS)
    assert [score.logprob for score in scores] == pytest.approx(found.tolist(), abs=1e-3)


def test_a_blank_image_scores_otherwise(engine: TransformersEngine) -> None:
    words = ["There is a red ring."] * len(REQUESTS)
    seen, blank = engine.score(REQUESTS, words), engine.score(REQUESTS, words, blank_image=True)
    assert all(abs(one.logprob - two.logprob) > 1e-4 for one, two in zip(seen, blank, strict=True))


def test_a_sampled_row_does_not_depend_on_its_batch(checkpoint: Path, engine: TransformersEngine) -> None:
    sampling = Sampling(8, temperature=1.0, top_p=0.9, seed=5)
    wide = TransformersEngine(checkpoint, batch_size=16)
    assert [one.token_ids for one in wide.complete(REQUESTS, sampling)] == [one.token_ids for one in engine.complete(REQUESTS, sampling)]


def test_equal_prompts_are_sampled_independently(engine: TransformersEngine) -> None:
    together = engine.complete([REQUESTS[0]] * 8, Sampling(8, temperature=8.0, seed=5))
    assert len({completion.token_ids for completion in together}) > 1


# ---- one look at an image


@pytest.fixture
def seed_engine() -> TransformersEngine:
    return TransformersEngine(EMBEDDED_MODEL, batch_size=3)


def test_the_vision_tower_reads_an_image_once(family: str, checkpoint: Path) -> None:
    if family == "mllama":
        pytest.skip("it runs whole")
    engine = TransformersEngine(checkpoint, batch_size=3)
    reference, seen = ReferenceModel(engine.model, Prompter(checkpoint)), count_pixels(engine.model)
    for request in {request.image_key: request for request in REQUESTS}.values():
        reference.logprob(request, "yes", [])
    once = sum(seen)
    assert once > 0
    engine.complete(REQUESTS, Sampling(2))
    engine.score(REQUESTS, ["yes"] * len(REQUESTS))
    assert sum(seen) == 2 * once


def test_an_image_with_a_key_is_encoded_once_until_the_weights_change(seed_engine: TransformersEngine) -> None:
    seen = count_pixels(seed_engine.model)
    first = seed_engine.complete(REQUESTS, Sampling(6))
    assert seed_engine.complete(REQUESTS, Sampling(6)) == first
    seed_engine.score(REQUESTS, ["yes"] * len(REQUESTS))
    once = sum(seen)
    assert once == 3 * 48 * 48 * len({request.image_key for request in REQUESTS})

    tensors = {name: tensor * 1.5 if "vision_tower" in name else tensor for name, tensor in read_checkpoint(EMBEDDED_MODEL).items()}
    digest = digest_of(tensors)
    seed_engine.swap(WeightUpdate("other", digest, manifest_of(tensors), tensors=tensors))
    after = seed_engine.complete(REQUESTS, Sampling(6))
    assert sum(seen) == 2 * once
    assert [one.logprob for one in after] != [one.logprob for one in first]


def test_an_image_without_a_key_is_encoded_once_per_call(seed_engine: TransformersEngine) -> None:
    seen = count_pixels(seed_engine.model)
    image = image_of(0)
    requests = [Request(image, prompt) for prompt in PROMPTS[:3]]
    seed_engine.complete(requests, Sampling(2))
    assert seen == [3 * 48 * 48]
    seed_engine.complete(requests, Sampling(2))
    assert seen == [3 * 48 * 48] * 2


# ---- new weights


def test_a_swap_attests_the_new_weights_and_serves_them(checkpoint: Path, tmp_path: Path) -> None:
    engine = TransformersEngine(checkpoint, batch_size=3)
    before = engine.complete(REQUESTS, Sampling(4))
    tensors = {name: tensor * 1.25 if tensor.ndim > 1 else tensor for name, tensor in read_checkpoint(checkpoint).items()}
    attested = engine.swap(WeightUpdate("other", digest_of(tensors), manifest_of(tensors), tensors=tensors))
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert attested.digest == digest_of(read_checkpoint(other))
    after = engine.complete(REQUESTS, Sampling(4))
    assert [one.token_ids for one in after] == [
        one.token_ids for one in TransformersEngine(other, batch_size=3).complete(REQUESTS, Sampling(4))
    ]
    assert [one.logprob for one in after] != [one.logprob for one in before]
