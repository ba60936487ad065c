"""Deciding: calls the acceptance policy, with input taken only from commits and the round's answers."""

from __future__ import annotations

from loop.run.contents import Run
from loop.run.stages.evaluation import answered, seed_predictions
from loop.store.selected import SelectedRows
from policies.acceptance.rules import DecisionContext, GeneratedStats, QuestionStats, Verdict
from policies.columns import compute
from policies.errors import running
from policies.metrics import distinct_n
from policies.scoring.predictions import Predictions


def decide(run: Run, index: int, champion: Predictions, candidate: Predictions, selected: SelectedRows) -> Verdict:
    """The verdict of the acceptance policy, on the acceptance sets only."""
    policy, context = run.policies.acceptance, _context(run, index, selected)
    asked = answered(run.data.acceptance, champion), answered(run.data.acceptance, candidate)
    with running(f"acceptance policy {type(policy).__name__!r}"):
        return policy.decide(*asked, context)


def _context(run: Run, index: int, selected: SelectedRows) -> DecisionContext:
    decisions = [commit.decision for commit in run.commits[1:] if commit.decision is not None]
    measured = [commit.metrics for commit in run.commits if "distinct_2" in commit.metrics]
    return DecisionContext(
        round=index,
        num_rounds=run.config.rounds,
        history=[Verdict(one.accepted, one.reason, one.numbers) for one in decisions],
        seed=answered(run.data.acceptance, seed_predictions(run)),
        seed_domain=frozenset(f"acceptance/{one.name}" for one in run.data.acceptance if one.seed_domain),
        generated=generated_stats(selected),
        previous=GeneratedStats(measured[-1]["distinct_2"], measured[-1]["mean_answer_words"]) if measured else None,
        questions=question_stats(selected),
    )


def generated_stats(selected: SelectedRows) -> GeneratedStats:
    """Diversity and length of the records that a round trains on."""
    texts = (f"{question} {answer}" for question, answer in zip(*selected.sample, strict=True))
    mean_words = compute.sum(selected.table["answer_words"]).as_py() / len(selected) if len(selected) else 0.0
    return GeneratedStats(distinct_n(texts, 2), mean_words)


def question_stats(selected: SelectedRows) -> QuestionStats:
    """Diversity and types of the questions that a round trains on."""
    questions, _ = selected.sample
    counts = {one["values"]: one["counts"] for one in compute.value_counts(selected.table["question_type"]).to_pylist()}
    shares = {name: count / len(selected) for name, count in sorted(counts.items())}
    return QuestionStats(distinct_n(questions, 1), distinct_n(questions, 2), shares)
