"""The transformers engine on a tiny untrained LLaVA: what it promises of completions, scores and swaps."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from actors.engines import EngineSpec, build_engine
from actors.engines.base import Completion, Engine, FinishReason, Request, Sampling, WeightUpdate
from actors.engines.errors import SwapError, WeightMismatchError
from actors.engines.preloading import verify_manifest
from actors.engines.transformers import TransformersEngine, served_tensors
from actors.engines.weights import TensorSpec, digest_of, manifest_of, num_bytes_of, read_checkpoint
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from tests.actors.engines.biased_model import WORDS, save_biased
from tests.world.untrained import save_untrained

PROMPTS = (
    "How many objects are there?",
    "Is the red ring to the left of the orange star?",
    "Describe the image in detail.",
    "What is at the center?",
    "Generate a question based on the content of the given image and then answer it.",
    "Where is the red ring?",
)  # fmt: skip
REQUESTS = [Request(render(scene_of(image_id(1, index, 0.1))), prompt) for index, prompt in enumerate(PROMPTS)]
SAMPLED = Sampling(24, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    save_untrained(folder)
    return folder


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a few words and full stops, and ends now and then."""
    return save_biased(tmp_path_factory.mktemp("wordy"), {**dict.fromkeys(WORDS, 0.0), ".": 0.0, "</s>": -0.15})


@pytest.fixture(scope="module")
def engine(untrained: Path) -> TransformersEngine:
    return TransformersEngine(untrained, batch_size=4)


@pytest.fixture(scope="module")
def wordy_engine(wordy: Path) -> TransformersEngine:
    return TransformersEngine(wordy)


@pytest.fixture(scope="module")
def tokenizer(untrained: Path) -> Any:
    return AutoProcessor.from_pretrained(untrained).tokenizer


@dataclass(frozen=True)
class Same:
    """Completions up to the last digits: other batches round otherwise."""

    completions: Sequence[Completion]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Same)
        pairs = list(zip(self.completions, other.completions, strict=True))
        return all(
            replace(one, logprob=0.0) == replace(two, logprob=0.0) and math.isclose(one.logprob, two.logprob, abs_tol=1e-3)
            for one, two in pairs
        )


# ---- completions


def test_greedy_completions_are_the_same_twice(engine: TransformersEngine) -> None:
    assert engine.complete(REQUESTS, Sampling(12)) == engine.complete(REQUESTS, Sampling(12))


def test_greedy_completions_do_not_depend_on_the_order_of_the_requests(engine: TransformersEngine) -> None:
    backwards = engine.complete(REQUESTS[::-1], Sampling(12))
    assert Same(backwards[::-1]) == Same(engine.complete(REQUESTS, Sampling(12)))


def test_a_batch_padded_on_the_left_gives_what_each_request_gives_alone(
    engine: TransformersEngine, wordy_engine: TransformersEngine
) -> None:
    for each in (engine, wordy_engine):
        alone = [each.complete([request], Sampling(12))[0] for request in REQUESTS]
        assert Same(each.complete(REQUESTS, Sampling(12))) == Same(alone)


def test_completions_come_in_the_order_of_the_requests(engine: TransformersEngine) -> None:
    together = engine.complete(REQUESTS, Sampling(12))
    assert len({completion.text for completion in together}) > 1
    assert Same(engine.complete(REQUESTS[3:4], Sampling(12))) == Same(together[3:4])


def test_sampled_completions_follow_from_their_seed(engine: TransformersEngine) -> None:
    first = engine.complete(REQUESTS, SAMPLED)
    torch.manual_seed(99)  # what others drew in this process does not matter
    assert engine.complete(REQUESTS, SAMPLED) == first
    other = engine.complete(REQUESTS, replace(SAMPLED, seed=4))
    assert [one.token_ids for one in other] != [one.token_ids for one in first]


def test_sampling_leaves_the_process_own_random_numbers_alone(engine: TransformersEngine) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    engine.complete(REQUESTS[:1], SAMPLED)
    assert torch.equal(torch.rand(3), expected)


def test_a_small_nucleus_is_greedy_and_a_low_temperature_nearly(wordy_engine: TransformersEngine) -> None:
    greedy = wordy_engine.complete(REQUESTS, Sampling(8))
    assert Same(wordy_engine.complete(REQUESTS, replace(SAMPLED, max_new_tokens=8, top_p=1e-6))) == Same(greedy)
    assert Same(wordy_engine.complete(REQUESTS, replace(SAMPLED, max_new_tokens=8, temperature=1e-4))) == Same(greedy)


def test_no_requests_give_no_completions(engine: TransformersEngine) -> None:
    assert engine.complete([], Sampling(4)) == []
    assert engine.score([], []) == []


def test_a_completion_says_how_it_ended(wordy_engine: TransformersEngine) -> None:
    completions = wordy_engine.complete(REQUESTS * 3, SAMPLED)
    ended = [one for one in completions if one.finish_reason is FinishReason.STOP]
    cut = [one for one in completions if one.finish_reason is FinishReason.LENGTH]
    assert ended
    assert cut
    assert all(one.num_logprob_tokens == len(one.token_ids) + 1 and len(one.token_ids) < 24 for one in ended)  # the end token counts
    assert all(one.num_logprob_tokens == len(one.token_ids) == 24 for one in cut)
    assert all(one.logprob < 0 and one.mean_logprob == one.logprob / one.num_logprob_tokens for one in completions)


def test_any_end_token_of_the_checkpoint_ends_a_row(wordy: Path, tmp_path: Path, tokenizer: Any) -> None:
    shutil.copytree(wordy, tmp_path / "model")
    settings = tmp_path / "model" / "generation_config.json"
    star = tokenizer.get_vocab()["▁star"]
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": [3, star]}))
    completions = TransformersEngine(tmp_path / "model").complete(REQUESTS, SAMPLED)
    assert {one.finish_reason for one in completions} == {FinishReason.STOP}
    assert not any(star in one.token_ids or 3 in one.token_ids for one in completions)


def test_a_checkpoints_own_sampling_settings_do_not_mix_in(wordy: Path, wordy_engine: TransformersEngine, tmp_path: Path) -> None:
    shutil.copytree(wordy, tmp_path / "model")
    settings = tmp_path / "model" / "generation_config.json"
    quirks = {"repetition_penalty": 5.0, "top_k": 2, "temperature": 0.3, "do_sample": True, "no_repeat_ngram_size": 1}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **quirks}))
    quirky = TransformersEngine(tmp_path / "model")
    for sampling in (Sampling(8), SAMPLED):
        assert quirky.complete(REQUESTS, sampling) == wordy_engine.complete(REQUESTS, sampling)


@pytest.mark.parametrize("token", ["<image>", "<pad>"])
def test_what_is_no_text_is_never_written(tmp_path: Path, token: str, tokenizer: Any) -> None:
    banned = tokenizer.get_vocab()[token]
    folder = save_biased(tmp_path / "biased", {**dict.fromkeys(WORDS, 0.0), token: 3.0})
    biased = TransformersEngine(folder)
    for sampling in (Sampling(6), replace(SAMPLED, max_new_tokens=6)):
        completions = biased.complete(REQUESTS, sampling)
        assert all(banned not in one.token_ids and len(one.token_ids) == 6 for one in completions)
        assert all(one.logprob > -60 for one in completions)  # over the tokens that may be written


# ---- stop strings and prefixes


def test_a_stop_string_ends_a_row_just_after_itself(wordy_engine: TransformersEngine) -> None:
    free = wordy_engine.complete(REQUESTS, Sampling(24, temperature=1.0, seed=3))
    stopped = [wordy_engine.complete([request], Sampling(24, temperature=1.0, seed=3, stop=(". ",)))[0] for request in REQUESTS]
    at_stop = [one for one in stopped if one.text.endswith(". ")]
    assert at_stop
    assert all(one.text.count(". ") == 1 and one.finish_reason is FinishReason.STOP for one in at_stop)
    assert all(". " not in one.text for one in stopped if one not in at_stop)
    assert all(one.num_logprob_tokens == len(one.token_ids) for one in at_stop)  # no end token was written
    assert any(". " in one.text for one in free)


def test_a_row_stops_alike_alone_and_beside_longer_rows(wordy_engine: TransformersEngine) -> None:
    sampling = Sampling(24, stop=(" is", ". ", " There"))
    alone = [wordy_engine.complete([request], sampling)[0] for request in REQUESTS]
    assert Same(wordy_engine.complete(REQUESTS, sampling)) == Same(alone)


@pytest.fixture(scope="module")
def reciting_engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """Writes WORDS one after the other, and again from the first."""
    folder = tmp_path_factory.mktemp("reciting")
    return TransformersEngine(save_biased(folder, dict.fromkeys(WORDS, 0.0), chain=(*WORDS, WORDS[0])))


def test_a_greedy_row_is_cut_out_of_what_it_would_have_written(reciting_engine: TransformersEngine) -> None:
    free = reciting_engine.complete(REQUESTS, Sampling(5))
    third, fourth = (f" {word}" for word in free[0].text.split(" ")[2:4])
    stopped = reciting_engine.complete(REQUESTS, Sampling(5, stop=(fourth, third + fourth, third)))
    assert third in free[0].text
    for one, other in zip(free, stopped, strict=True):
        assert other.text == (one.text[: one.text.find(third) + len(third)] if third in one.text else one.text)
        assert other.finish_reason is (FinishReason.STOP if third in one.text else FinishReason.LENGTH)


def test_an_answer_prefix_is_continued(reciting_engine: TransformersEngine) -> None:
    for request, whole in zip(REQUESTS, reciting_engine.complete(REQUESTS, Sampling(10)), strict=True):
        words = whole.text.split(" ")
        assert len(set(words)) == len(WORDS)
        (continued,) = reciting_engine.complete([replace(request, answer_prefix=" ".join(words[:4]))], Sampling(6))
        assert continued.text == " ".join(words[4:])
        assert continued.token_ids == whole.token_ids[4:]
        assert continued.num_logprob_tokens == 6


# ---- scores


def test_a_completions_log_probability_is_the_score_of_its_text(wordy_engine: TransformersEngine, tokenizer: Any) -> None:
    requests = REQUESTS * 4
    completions = wordy_engine.complete(requests, SAMPLED)
    pairs = [
        (request, one)
        for request, one in zip(requests, completions, strict=True)
        if one.finish_reason is FinishReason.STOP
        and tuple(tokenizer(f" {one.text}", add_special_tokens=False)["input_ids"]) == one.token_ids
    ]
    assert len(pairs) >= 5
    scores = wordy_engine.score([request for request, _ in pairs], [one.text for _, one in pairs])
    assert [score.num_tokens for score in scores] == [one.num_logprob_tokens for _, one in pairs]
    assert [score.logprob for score in scores] == pytest.approx([one.logprob for _, one in pairs], abs=1e-3)


def test_a_batch_of_scores_is_what_each_gives_alone(engine: TransformersEngine) -> None:
    texts = ["There is a red ring.", "No.", "A large star is at the center.", "", "There are 3 objects.", "So yes."]
    together = engine.score(REQUESTS, texts)
    alone = [engine.score([request], [text])[0] for request, text in zip(REQUESTS, texts, strict=True)]
    assert [one.num_tokens for one in together] == [one.num_tokens for one in alone] == [7, 3, 9, 2, 6, 4]  # end tokens included
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in alone], abs=1e-3)


def test_a_score_after_a_prefix_is_of_the_continuation_alone(engine: TransformersEngine) -> None:
    first, second = "The ring is red.", "So yes."
    (whole,) = engine.score(REQUESTS[:1], [f"{first} {second}"])
    (rest,) = engine.score([replace(REQUESTS[0], answer_prefix=first)], [second])
    assert (whole.num_tokens, rest.num_tokens) == (9, 4)
    assert whole.logprob < rest.logprob < 0


def test_a_blank_image_gives_another_score(engine: TransformersEngine) -> None:
    texts = ["There is a red ring."] * len(REQUESTS)
    seen, blank = engine.score(REQUESTS, texts), engine.score(REQUESTS, texts, blank_image=True)
    assert all(abs(one.logprob - other.logprob) > 1e-3 for one, other in zip(seen, blank, strict=True))
    swapped = [replace(request, image=REQUESTS[0].image) for request in REQUESTS]
    again = engine.score(swapped, texts, blank_image=True)
    assert [one.logprob for one in again] == pytest.approx([one.logprob for one in blank], abs=1e-3)  # whatever the image was


# ---- swaps


def update_of(tensors: Mapping[str, torch.Tensor], version: str, digest: str = "") -> WeightUpdate:
    return WeightUpdate(version, digest or digest_of(tensors), manifest_of(tensors), tensors=tensors)


def perturbed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: one + 0.05 * torch.randn(one.shape, generator=generator) for name, one in tensors.items()}


@pytest.fixture
def swappable(untrained: Path) -> TransformersEngine:
    return TransformersEngine(untrained)


def test_an_engine_is_built_from_its_spec(untrained: Path) -> None:
    built: Engine = build_engine(EngineSpec("transformers", str(untrained), {"batch_size": 2}))
    assert built.weight_version == ""


def test_a_swap_changes_what_is_served_and_attests_it(swappable: TransformersEngine, untrained: Path) -> None:
    before = swappable.complete(REQUESTS, Sampling(8))
    tensors = perturbed(read_checkpoint(untrained))
    attested = swappable.swap(update_of(tensors, "r1-new"))
    assert (attested.version, attested.digest, attested.num_bytes) == ("r1-new", digest_of(tensors), num_bytes_of(tensors))
    assert swappable.weight_version == "r1-new"
    after = swappable.complete(REQUESTS, Sampling(8))
    assert [one.token_ids for one in after] != [one.token_ids for one in before]
    assert {one.weight_version for one in after} == {"r1-new"}
    assert {one.weight_version for one in swappable.score(REQUESTS[:1], ["No."])} == {"r1-new"}


def test_a_swap_serves_what_an_engine_loaded_from_the_same_checkpoint_serves(
    swappable: TransformersEngine, wordy: Path, wordy_engine: TransformersEngine
) -> None:
    tensors = read_checkpoint(wordy)
    swappable.swap(WeightUpdate("w", digest_of(tensors), manifest_of(tensors), checkpoint=wordy))
    served, loaded = swappable.complete(REQUESTS, SAMPLED), wordy_engine.complete(REQUESTS, SAMPLED)
    assert [replace(one, weight_version="") for one in served] == [replace(one, weight_version="") for one in loaded]


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions of the updates that the engine has verified, in order."""
    versions: list[str] = []

    def verify_and_tell(update: WeightUpdate, *arguments: Any) -> None:
        versions.append(update.version)
        verify_manifest(update, *arguments)

    monkeypatch.setattr("actors.engines.transformers.verify_manifest", verify_and_tell)
    return versions


def test_a_preloaded_swap_serves_what_a_whole_swap_serves_and_verifies_before(
    swappable: TransformersEngine, untrained: Path, verified: list[str]
) -> None:
    old, new = read_checkpoint(untrained), perturbed(read_checkpoint(untrained))
    before = swappable.complete(REQUESTS, SAMPLED)
    expected = swappable.swap(update_of(new, "new")), swappable.complete(REQUESTS, SAMPLED)
    swappable.swap(update_of(old, ""))
    verified.clear()
    preloading = Thread(target=swappable.preload, args=(update_of(new, "new"),))
    preloading.start()
    assert swappable.complete(REQUESTS, SAMPLED) == before
    preloading.join()
    assert verified == ["new"]
    attested = replace(swappable.swap(update_of(new, "new")), seconds=expected[0].seconds)
    assert (attested, swappable.complete(REQUESTS, SAMPLED)) == expected
    assert verified == ["new"], "not again within the swap"


def test_what_is_wrong_with_a_preloaded_update_is_raised_by_its_swap(
    swappable: TransformersEngine, untrained: Path, verified: list[str]
) -> None:
    old = read_checkpoint(untrained)
    swappable.swap(update_of(old, "r0"))
    before = swappable.complete(REQUESTS, Sampling(6))
    bad = _without_one(perturbed(old))
    swappable.preload(bad)
    with pytest.raises(WeightMismatchError, match="nothing given"):
        swappable.swap(bad)
    assert verified == ["r0", "bad"]
    assert (swappable.weight_version, swappable.complete(REQUESTS, Sampling(6))) == ("r0", before)


def _without_one(tensors: dict[str, torch.Tensor]) -> WeightUpdate:
    return update_of({name: one for name, one in tensors.items() if name != sorted(tensors)[3]}, "bad")


def _with_another(tensors: dict[str, torch.Tensor]) -> WeightUpdate:
    return update_of({**tensors, "further.weight": torch.zeros(2)}, "bad")


def _of_another_shape(tensors: dict[str, torch.Tensor]) -> WeightUpdate:
    name = sorted(tensors)[0]
    return update_of({**tensors, name: torch.zeros(*tensors[name].shape, 2)}, "bad")


def _of_another_dtype(tensors: dict[str, torch.Tensor]) -> WeightUpdate:
    return update_of({name: one.to(torch.bfloat16) for name, one in tensors.items()}, "bad")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_without_one, r"nothing given, float32\[.*\] served"),
        (_with_another, r"further\.weight: float32\[2\] given, nothing served"),
        (_of_another_shape, r"given, float32\[.*\] served"),
        (_of_another_dtype, r"bfloat16\[.*\] given, float32\[.*\] served"),
    ],
)
def test_an_update_that_does_not_fit_changes_nothing(swappable: TransformersEngine, untrained: Path, make: Any, message: str) -> None:
    old = read_checkpoint(untrained)
    swappable.swap(update_of(old, "r0"))
    before = swappable.complete(REQUESTS, Sampling(6))
    with pytest.raises(WeightMismatchError, match=message):
        swappable.swap(make(perturbed(old)))
    assert swappable.weight_version == "r0"
    assert swappable.complete(REQUESTS, Sampling(6)) == before


@pytest.mark.parametrize("fault", ["other bytes than were prepared", "a failed copy"])
def test_weights_of_another_digest_are_found_when_they_are_live_and_not_served(
    swappable: TransformersEngine, untrained: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    old = read_checkpoint(untrained)
    swappable.swap(update_of(old, "r0"))
    update = update_of(perturbed(old), "bad", digest="0" * 64 if fault == "other bytes than were prepared" else "")
    if fault == "a failed copy":
        served = {name: one.clone() for name, one in served_tensors(swappable.model).items()}
        answers = iter([served, served_tensors(swappable.model)])  # the engine writes to copies of its parameters
        monkeypatch.setattr("actors.engines.transformers.served_tensors", lambda _: next(answers))
    with pytest.raises(SwapError, match=f"the served weights have digest .*; {update.digest} was prepared as bad"):
        swappable.swap(update)
    assert swappable.weight_version == ""


def test_an_update_from_a_folder_without_weights_is_refused(swappable: TransformersEngine, tmp_path: Path) -> None:
    with pytest.raises(WeightMismatchError, match="cannot read weights"):
        swappable.swap(WeightUpdate("r1", "0" * 64, {"a": TensorSpec((1,), "float32")}, checkpoint=tmp_path))
    assert swappable.weight_version == ""


def test_what_is_no_image_text_model_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot load .* as an image-text-to-text model"):
        TransformersEngine(tmp_path)
