"""The seed model of the drawings: what it is trained on, and what the shipped one can do."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from actors.evaluator import Evaluator
from loop.config.run_config import EMBEDDED_MODELS
from loop.models.seed.curriculum import DRAWINGS, drills, served, several_turns
from loop.models.seed.drawings import AugmentedDrawings, num_classes, patch_labels
from loop.models.seed.model import DRAWINGS_ANATOMY, build_processor, drawings_words
from loop.sources.drawings.houses import SHIPPED, read_things
from loop.sources.drawings.scene import image_id, scene_of
from loop.sources.drawings.source import DrawingsImages
from policies.generation.instructions import QuestionType
from policies.metrics import share

MODEL = EMBEDDED_MODELS["embedded-drawings"]
THINGS = read_things(SHIPPED)


def test_the_shipped_model_is_small_and_answers_85_percent_in_the_house_it_was_trained_on() -> None:
    assert isinstance(AutoProcessor.from_pretrained(MODEL), LlavaProcessor)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(MODEL), LlavaForConditionalGeneration)
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 12e6
    evaluator, accuracy = Evaluator(served(MODEL)), {}
    for house, num_questions in (("noto", 300), ("openmoji", 90)):
        source = DrawingsImages(7001, (house,), num_questions)
        predictions = evaluator.evaluate(source, source.questions(num_questions, seed=0), max_new_tokens=64)
        accuracy[house] = share(prediction.correct for prediction in predictions)
    assert accuracy["noto"] >= 0.85
    assert accuracy["openmoji"] < 0.6  # nobody taught it that house


def test_every_text_of_the_world_is_in_the_vocabulary_and_survives_the_tokenizer() -> None:
    tokenizer = build_processor(anatomy=DRAWINGS_ANATOMY).tokenizer
    source = DrawingsImages(77, ("twemoji",), 300)
    texts = [text for sample in source.training_samples(600, 3) for turn in sample.turns for text in turn]
    texts += [question.question for kind in QuestionType for question in source.questions(100, len(kind))]
    texts += [text for sample in drills(source, 300, np.random.default_rng(0)) for turn in sample.turns for text in turn]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert all(tokenizer.unk_token_id not in ids for ids in encoded)
    assert tokenizer.batch_decode(encoded) == texts
    assert len(set(drawings_words())) == len(drawings_words())


def test_patches_are_labelled_by_what_is_in_their_cell() -> None:
    scene = scene_of(image_id("noto", 1, 0), THINGS)
    labels = patch_labels([scene], THINGS)[0].reshape(6, 6, 3)
    assert labels[::2, ::2, 2].ravel().tolist() == list(range(9))
    assert (labels[::2, ::2] == labels[1::2, 1::2]).all()
    found = {(row // 2 * 3 + column // 2, labels[row, column, 0] - 1) for row, column in np.argwhere(labels[..., 0] > 0)}
    assert found == {(thing.cell, thing.number) for thing in scene.things}


def test_augmented_batches_are_drawn_by_the_seed_and_keep_their_labels_in_place() -> None:
    batches = AugmentedDrawings("noto", build_processor(anatomy=DRAWINGS_ANATOMY).image_processor, num_images=12, seed=0)
    (pixels, labels), again = (batches(16, torch.Generator().manual_seed(3)) for _ in range(2))
    assert (pixels.shape, labels.shape) == ((16, 3, 96, 96), (16, 36, 3))
    assert torch.equal(pixels, again[0])
    assert torch.equal(labels, again[1])
    assert all(int(labels[..., part].max()) < size for part, size in enumerate(num_classes(THINGS)))
    assert (labels[..., 2] == labels[0, :, 2]).all()  # a mirrored image has its cells where they were
    grid = labels.view(16, 6, 6, 3)[..., 0]
    assert (grid[:, ::2, ::2] == grid[:, 1::2, 1::2]).all()
    busy = pixels.view(16, 3, 3, 32, 3, 32).std(dim=(3, 5)).mean(1)  # how much there is to see in a cell
    there = grid[:, ::2, ::2] > 0
    assert float(busy[there].mean()) > 1.5 * float(busy[~there].mean())


def test_turns_about_an_image_are_asked_together() -> None:
    samples = drills(DrawingsImages(1, ("noto",), 4), 10, np.random.default_rng(0))
    together = several_turns(samples, 2)
    assert several_turns(samples, 1) == samples
    assert {sample.image_id for sample in together} == {sample.image_id for sample in samples}
    assert [len(sample.turns) for sample in together] == [2, 1, 2, 1, 2, 2]
    assert sorted(turn for sample in together for turn in sample.turns) == sorted(turn for sample in samples for turn in sample.turns)


def test_the_curriculum_looks_at_every_image_in_both_ways() -> None:
    ids = DRAWINGS.labelled.image_ids()
    assert len(ids) % 3, "every third drill lists cells: with a multiple of three images an image would get the same kind each time"
