"""How often acceptance policies accept a candidate that is not better, and reject one that is, in simulated loops.

    python -m benchmarks.quality.acceptance --out benchmarks/results/acceptance.json

A loop has ten rounds over one acceptance set of 1,000 questions. The champion starts with 70 % right; a candidate's answers differ on a
share of the questions (the discordance: 10, 15 or 20 %). The kinds of loops:

    equal           every candidate is exactly as good as the champion
    2 points        from round 1, candidates are 2 points better until one is accepted; later ones are equal again
    5 points        the same with 5 points
    5 points, late  equal candidates in rounds 1 to 5, then as above from round 6

Candidates are related to the champion in two ways: `inherited` candidates flip some of the champion's own answers, so that its luck with
these questions is inherited; `independent` ones share only the difficulty of a question (one latent variable per question and one per
answer, both normal). Accepting a candidate that is equal by construction counts as a false acceptance. Decisions are made by the real
policies. Shares have 95 % Wilson intervals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import root_scalar
from scipy.stats import binomtest, norm

from benchmarks.common import argument_parser, write_results
from policies.acceptance.rules import (
    ACCEPTANCE_POLICIES,
    AcceptancePolicy,
    Answered,
    DecisionContext,
    GeneratedStats,
    QuestionStats,
    Verdict,
)

ACCURACY = 0.7
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "evidence": ("evidence", {}),
    "evidence, equal levels": ("evidence", {"spending": "equal"}),
    "paired_test": ("paired_test", {}),
}
KINDS = {"equal": (0.0, 1), "2 points": (0.02, 1), "5 points": (0.05, 1), "5 points, late": (0.05, 6)}
"""Kind of loop -> the gain of candidates, and the first round with a gain."""
DISCORDANCES = (0.1, 0.15, 0.2)


@dataclass(frozen=True)
class Outcome:
    """Results for the loops of one kind under one policy, as shares of loops unless noted otherwise."""

    policy: str
    kind: str
    related: str
    discordance: float
    any_false: float
    """Loops that accepted a candidate that was not better."""
    first_offer: float | None
    """Share of first better candidates, one per loop, that were accepted."""
    by_the_end: float | None
    """Loops that accepted a better candidate in any round."""


def main() -> None:
    """Simulate, print the table and write it as JSON."""
    parser = argument_parser(__doc__, "acceptance.json")
    parser.add_argument("--repetitions", type=int, default=1000, help="loops of each kind")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--questions", type=int, default=1000, help="acceptance questions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.process_time()
    outcomes = [
        simulate(policy, kind, related, discordance, args.repetitions, args.rounds, args.questions, args.seed)
        for policy in POLICIES
        for related in RELATED
        for kind in KINDS
        for discordance in DISCORDANCES
        if related == "inherited" or policy == "evidence"
    ]
    seconds = time.process_time() - started
    rows = [vars(one) for one in outcomes]
    settings = {"repetitions": args.repetitions, "rounds": args.rounds, "questions": args.questions, "accuracy": ACCURACY}
    write_results(args.out, {**settings, "seed": args.seed, "cpu_seconds": round(seconds, 1), "rows": rows})
    print_table(outcomes, args.repetitions)


def simulate(
    policy: str, kind: str, related: str, discordance: float, num_loops: int, num_rounds: int, num_questions: int, seed: int
) -> Outcome:
    """Simulate all loops of one kind at once: arrays of answers are [loops, questions], others [loops]."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind), list(RELATED).index(related), round(1000 * discordance)])
    decide = Decider(policy, num_rounds, num_questions)
    gain, from_round = KINDS[kind]
    models = RELATED[related](discordance, (num_loops, num_questions), rng)
    accuracy = np.full(num_loops, ACCURACY)
    champions = models.first()
    accepted = np.zeros((num_loops, 0), dtype=bool)
    is_better = np.zeros((num_loops, 0), dtype=bool)
    for number in range(1, num_rounds + 1):
        better = ~(accepted & is_better).any(1) & (number >= from_round) & (gain > 0)
        candidates = models.next(champions, accuracy, np.where(better, gain, 0.0))
        won, lost = (candidates & ~champions).sum(1).tolist(), (champions & ~candidates).sum(1).tolist()
        now = np.array([decide(*counts, tuple(before)) for *counts, before in zip(won, lost, accepted.tolist(), strict=True)])
        champions = np.where(now[:, None], candidates, champions)
        accuracy = accuracy + np.where(now & better, gain, 0.0)
        accepted, is_better = np.column_stack([accepted, now]), np.column_stack([is_better, better])
    powers = (None, None)
    if gain:
        first = accepted[:, from_round - 1]
        powers = (float(first.mean()), float((accepted & is_better).any(1).mean()))
    return Outcome(policy, kind, related, discordance, float((accepted & ~is_better).any(1).mean()), *powers)


class Decider:
    """Caches a policy's decisions on one set without guards, which depend only on counts and earlier verdicts."""

    def __init__(self, policy: str, num_rounds: int, num_questions: int) -> None:
        name, options = POLICIES[policy]
        self._policy: AcceptancePolicy = ACCEPTANCE_POLICIES.build(name, options)
        self._num_rounds, self._num_questions = num_rounds, num_questions
        self._known: dict[tuple[int, int, tuple[bool, ...]], bool] = {}

    def __call__(self, won: int, lost: int, history: tuple[bool, ...]) -> bool:
        key = (won, lost, history)
        if key not in self._known:
            same = self._num_questions - won - lost
            champion = Answered({"acceptance": [False] * won + [True] * (lost + same)})
            candidate = Answered({"acceptance": [True] * won + [False] * lost + [True] * same})
            self._known[key] = self._policy.decide(champion, candidate, self._context(champion, history)).accepted
        return self._known[key]

    def _context(self, seed: Answered, history: tuple[bool, ...]) -> DecisionContext:
        """A context whose generated data equal those of round 1."""
        generated, questions = GeneratedStats(0.5, 10.0), QuestionStats(0.5, 0.5, {})
        numbers = {"generated_words": 10.0, "question_distinct_1": 0.5, "question_distinct_2": 0.5}
        verdicts = [Verdict(accepted, "", numbers) for accepted in history]
        return DecisionContext(len(history) + 1, self._num_rounds, verdicts, seed, frozenset(), generated, generated, questions)


@dataclass(frozen=True)
class Inherited:
    """Candidates are the champion with flipped answers, right to wrong and wrong to right, at rates that give the wanted discordance and
    gain in expectation."""

    discordance: float
    shape: tuple[int, int]
    rng: np.random.Generator

    def first(self) -> np.ndarray:
        return self.rng.random(self.shape) < ACCURACY

    def next(self, champions: np.ndarray, accuracy: np.ndarray, better: np.ndarray) -> np.ndarray:
        lose, win = (self.discordance - better) / 2 / accuracy, (self.discordance + better) / 2 / (1 - accuracy)
        return champions ^ (self.rng.random(self.shape) < np.where(champions, lose[:, None], win[:, None]))


class Independent:
    """Every model answers independently: right if the question's ease plus the answer's luck, both normal, exceed a threshold."""

    def __init__(self, discordance: float, shape: tuple[int, int], rng: np.random.Generator) -> None:
        ease, weight = np.polynomial.hermite_e.hermegauss(80)

        def excess(shared: float) -> float:
            right = norm.cdf((norm.ppf(ACCURACY) - shared**0.5 * ease) / (1 - shared) ** 0.5)
            both_right = float(weight @ right**2 / weight.sum())
            return both_right - (ACCURACY - discordance / 2)

        self._shared, self._rng = float(root_scalar(excess, bracket=(0.01, 0.99)).root), rng
        self._ease = rng.standard_normal(shape)

    def first(self) -> np.ndarray:
        return self._answers(np.full(len(self._ease), ACCURACY))

    def next(self, champions: np.ndarray, accuracy: np.ndarray, better: np.ndarray) -> np.ndarray:
        return self._answers(accuracy + better)

    def _answers(self, accuracy: np.ndarray) -> np.ndarray:
        luck = self._rng.standard_normal(self._ease.shape)
        return self._shared**0.5 * self._ease + (1 - self._shared) ** 0.5 * luck < norm.ppf(accuracy)[:, None]


RELATED: dict[str, Callable[..., Inherited | Independent]] = {"inherited": Inherited, "independent": Independent}


def print_table(outcomes: Sequence[Outcome], num_loops: int) -> None:
    table = Table("policy", "candidates", "loop", "differ, %", "any false, %", "taken at first, %", "by the end, %", box=None)
    for one in outcomes:
        shares = (one.any_false, one.first_offer, one.by_the_end)
        table.add_row(one.policy, one.related, one.kind, f"{100 * one.discordance:.0f}", *(_cell(share, num_loops) for share in shares))
    Console(width=130).print(table)


def _cell(share: float | None, num_loops: int) -> str:
    if share is None:
        return ""
    low, high = binomtest(round(share * num_loops), num_loops).proportion_ci(method="wilson")
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
