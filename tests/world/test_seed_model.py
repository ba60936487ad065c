"""The shipped seed model: what it is, what it can do, and that its curriculum is made of what it says."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from actors.engines.transformers import TransformersEngine
from loop.config.run_config import EMBEDDED_MODEL
from loop.models.seed.curriculum import score
from loop.models.seed.model import build_model, build_processor, words
from loop.models.seed.vision import patch_labels, pretrain_vision
from loop.sources.shapes.drills import cells, find
from loop.sources.shapes.scene import SHAPES, image_id, scene_of
from loop.sources.shapes.source import ShapesImages
from policies.generation.instructions import QuestionType


def test_the_shipped_model_loads_by_its_auto_classes_and_is_small() -> None:
    assert isinstance(AutoProcessor.from_pretrained(EMBEDDED_MODEL), LlavaProcessor)
    model = AutoModelForImageTextToText.from_pretrained(EMBEDDED_MODEL)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert sum(file.stat().st_size for file in EMBEDDED_MODEL.iterdir()) < 12e6
    assert isinstance(TransformersEngine(EMBEDDED_MODEL).weight_version, str)


def test_the_shipped_model_answers_nine_in_ten_near_shift_0_and_knows_little_far_out() -> None:
    scores = score(EMBEDDED_MODEL)
    assert scores["0-0.15"] >= 0.90
    assert scores["0-0.15"] > scores["0.2-0.4"] > scores["0.4-0.7"] > scores["0.7-1.0"]


def test_every_text_of_the_world_is_in_the_vocabulary_and_survives_the_tokenizer() -> None:
    tokenizer = build_processor().tokenizer
    source = ShapesImages(77, 0.0, 1.0, 300)
    texts = [text for sample in source.training_samples(600, 3) for turn in sample.turns for text in turn]
    texts += [question.question for kind in QuestionType for question in source.questions(100, len(kind))]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert all(tokenizer.unk_token_id not in ids for ids in encoded)
    assert tokenizer.batch_decode(encoded) == texts
    assert len(set(words())) == len(words())


def test_drills_tell_what_is_where_and_where_what_is() -> None:
    scene = scene_of(image_id(1, 0, 0.0))
    _, listed = cells(scene)
    assert listed.count("empty") == 9 - len(scene.things)
    assert all(f"{thing.position} {thing.size} {thing.color} {thing.shape}" in listed for thing in scene.things)
    prompt, found = find(scene, np.random.default_rng(0))
    assert len(prompt.removeprefix("Find: ").split(", ")) == len(found.split(", ")) == 6


def test_patches_are_labelled_by_what_is_in_them_and_where_they_are() -> None:
    scene = scene_of(image_id(1, 0, 0.0))
    labels = patch_labels([scene.image_id])[0]
    assert labels[:, 3].tolist() == list(range(9))
    assert {cell for cell in range(9) if labels[cell, 0]} == {thing.cell for thing in scene.things}
    assert all(SHAPES[labels[thing.cell, 0] - 1] == thing.shape for thing in scene.things)


def test_vision_pretraining_teaches_the_tower() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, processor = build_model(), build_processor()
    tower = model.model.vision_tower
    right = pretrain_vision(
        tower.parameters(), lambda pixels: tower(pixels).last_hidden_state[:, 1:], processor.image_processor,
        ShapesImages(1, 0.0, 0.1, 256), num_steps=250, seed=0,
    )  # fmt: skip
    assert right > 0.3  # of 6 shapes x 8 colors x 2 sizes: chance is 1 %
