"""How much of the seed model's output is wrong, with and without correction, and what chains of filters keep of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.correction.corrector import Corrector
from actors.generator import Generator
from actors.shards import Shard, ShardImages
from actors.views import find_view
from loop.config.run_config import EMBEDDED_MODEL, load_config
from loop.models.seed.curriculum import served
from loop.setup.assembly import build_policies
from loop.sources.shapes.claims import claims_of
from loop.sources.shapes.questions import is_correct
from loop.sources.shapes.scene import scene_of
from loop.sources.shapes.source import ShapesImages
from policies.correction.methods import CorrectionPolicy, Grounded, SentenceBySentence
from policies.filtering.chain import FilterChain
from policies.generation.instructions import QuestionType, plan_tasks
from policies.records import Record

_RECIPE = Path("loop/recipes/shapes.yaml")
_IMAGE_SEED = 7001
_SURE = -0.02
"""Mean log-probability per token that the seed model gives to what it sees; most of its sentences are more certain."""
_FAR = 0.04
"""Share of an image's side: two pixels, twice the shift of the recipe's views."""
_TYPE_MIX = {QuestionType.CONVERSATION: 0.4, QuestionType.DETAIL: 0.3, QuestionType.COMPLEX: 0.3}


@dataclass(frozen=True)
class Hallucination:
    """Errors in the answers of one correction method, as shares 0..1."""

    shift: str
    way: str
    num_answers: int
    contradicted: float
    """Answers with a statement that contradicts the truth."""
    objects_not_there: float
    """Mentioned objects that are absent (CHAIRi)."""
    exact: float
    """Exactly right answers to questions with a true premise."""


@dataclass(frozen=True)
class Kept:
    """What a chain of filters keeps of the parsable records."""

    shift: str
    chain: str
    kept: float
    exact: float


def measure(shift: str, num_images: int) -> tuple[list[Hallucination], list[Kept]]:
    """Generate records for a range of shift, as in the recipe but of all three types; returns results of correction and filtering."""
    config, engine = load_config(_RECIPE), served(EMBEDDED_MODEL)
    policies = build_policies(config)
    low, high = map(float, shift.split("-"))
    source = ShapesImages(_IMAGE_SEED, low, high, num_images)
    shard = Shard(1, 0, 5, tuple(plan_tasks(source.image_ids(), _TYPE_MIX, 2, seed=1)), source)
    images = ShardImages(source, find_view(config.generation.view))
    generated = Generator(engine, config.generation.options, images).generate(shard)

    def corrected(policy: CorrectionPolicy) -> list[Record]:
        return Corrector(engine, policy, images).correct(shard, generated)

    plain = SentenceBySentence(num_views=0, describe=False, measure_blank=False)
    grounded = Grounded(
        num_looks=4, view_shift=_FAR, min_view_logprob=_SURE, check_premises=True, premise_questions=policies.correction.premise_questions,
        num_views=0, describe=False, measure_blank=False,
    )  # fmt: skip
    ways = {
        "VIG": [replace(record, answer=record.original_answer) for record in generated],
        "VIC": corrected(plain),
        "grounded VIC": corrected(grounded),
    }
    found = {checked: corrected(replace(policies.correction, check_premises=checked)) for checked in (True, False)}
    return [_judged(shift, way, records) for way, records in ways.items()], _kept(shift, found, policies.filters)


def _kept(shift: str, found: dict[bool, list[Record]], recipe: FilterChain) -> list[Kept]:
    """What each chain keeps of the records. Chains that judge by premises get the records with checked premises."""
    parsable = sum(bool(record.question) for record in found[True])
    rows = []
    for name, chain in _chains(recipe).items():
        is_checked = any(policy.name == "premise" for policy in chain.policies)
        kept = [record for record in chain.apply(found[is_checked]).records if record.accepted]
        rows.append(Kept(shift, name, len(kept) / parsable, _share_exact(kept)))
    return rows


def _chains(recipe: FilterChain) -> dict[str, FilterChain]:
    by_name = {policy.name: policy for policy in recipe.policies}
    form = [by_name["parsable"], by_name["length"]]
    premises = [by_name["parsable"], by_name["premise"], by_name["length"]]

    def without(name: str) -> FilterChain:
        return FilterChain([policy for policy in recipe.policies if policy.name != name])

    return {
        "parsable": FilterChain(form),
        "confidence (VIGC's kind)": FilterChain([*form, by_name["confidence"]]),
        "agreement": FilterChain([*form, by_name["agreement"]]),
        "premise": FilterChain(premises),
        "premise, agreement": FilterChain([*premises, by_name["agreement"]]),
        "the recipe's": recipe,
        "the recipe's without premise": without("premise"),
        "the recipe's without agreement": without("agreement"),
    }


def _judged(shift: str, way: str, records: Sequence[Record]) -> Hallucination:
    answered = [record for record in records if record.question and record.answer]
    claims = [claims_of(scene_of(record.image_id), record.question, record.answer) for record in answered]
    return Hallucination(
        shift,
        way,
        len(answered),
        contradicted=sum(claim.num_contradicted > 0 for claim in claims) / len(answered),
        objects_not_there=sum(claim.num_objects_not_there for claim in claims) / max(1, sum(claim.num_objects for claim in claims)),
        exact=_share_exact(answered),
    )


def _share_exact(records: Sequence[Record]) -> float:
    right = sum(is_correct(scene_of(record.image_id), record.question, record.answer) for record in records)
    return right / max(1, len(records))
