"""Acceptance: whether a candidate becomes the champion.

A policy decides on its arguments alone, which come from committed records and from the answers of the round, so that a resumed run
decides like an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from policies.acceptance.paired import Comparison, Score, compare, compare_sets, interval, p_value, pooled, quantiles
from policies.acceptance.sequential import Spending, level, spent
from policies.checks import check_at_least, check_choice, check_share
from policies.registry import Registry
from policies.scoring.answer_metrics import ACCURACY, MIXED

Scores = Mapping[str, Sequence[Score]]
"""Held-out set name -> the score of each answer, 0..1, higher is better, in the same order for every model. Right and wrong are 1 and
0."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How a model answered the acceptance sets."""

    scores: Scores
    measures: Mapping[str, str] = field(default_factory=dict)
    """Set -> name of its scores; `accuracy` for sets that are not listed."""
    hallucinated: Mapping[str, Sequence[bool | None]] = field(default_factory=dict)
    """Set -> whether each answer names something that is not there; None if that is unknown."""
    yes_share: Mapping[str, float] = field(default_factory=dict)
    """Yes-or-no set -> share of yes answers."""
    mean_words: float = 0.0
    """Mean number of words of an answer, over all sets."""

    def measure(self, *names: str) -> str:
        """Name of the scores of these sets, or of all."""
        found = {self.measures.get(name, ACCURACY) for name in names or self.scores}
        return found.pop() if len(found) == 1 else MIXED


@dataclass(frozen=True, slots=True)
class GeneratedStats:
    """Statistics of a round's generated answers, to guard against drift to one phrase or to ever longer answers."""

    distinct_2: float
    """Distinct word bigrams over all word bigrams, 0..1."""
    mean_answer_words: float


@dataclass(frozen=True, slots=True)
class QuestionStats:
    """Statistics of a round's generated questions."""

    distinct_1: float
    """Distinct words over all words, 0..1."""
    distinct_2: float
    """Distinct word bigrams over all word bigrams, 0..1."""
    type_shares: Mapping[str, float]
    """Question type -> its share of the questions."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision and what it rests on."""

    accepted: bool
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DecisionContext:
    """The point in a run at which a decision is made."""

    round: int
    """From 1."""
    num_rounds: int
    """Largest number of rounds."""
    history: Sequence[Verdict]
    """The verdicts of the rounds before, in order, as committed; without numbers if a round had nothing to train on."""
    seed: Answered
    """How the seed model, the champion of round 0, answered the same questions."""
    seed_domain: frozenset[str]
    """The acceptance sets whose questions resemble the seed data, to detect forgetting."""
    generated: GeneratedStats
    """The answers of the round that the candidate was trained on."""
    previous: GeneratedStats | None
    """Those of the round before; None in the first."""
    questions: QuestionStats
    """The questions of the round that the candidate was trained on."""

    def __post_init__(self) -> None:
        assert len(self.history) == self.round - 1, f"{len(self.history)} verdicts before round {self.round}"


class AcceptancePolicy(Protocol):
    """Decides on a candidate."""

    def decide(self, champion: Answered, candidate: Answered, context: DecisionContext) -> Verdict:
        """The verdict on a candidate: how the champion and the candidate answered the same questions, and when.

        Raises:
            ValueError: the two models were not asked the same questions, or none.
        """
        ...


ACCEPTANCE_POLICIES: Registry[AcceptancePolicy] = Registry("acceptance policy", AcceptancePolicy)


@ACCEPTANCE_POLICIES.register("always")
@dataclass(frozen=True)
class Always:
    """Every candidate becomes the champion; the numbers are still reported."""

    def decide(self, champion: Answered, candidate: Answered, context: DecisionContext) -> Verdict:
        return Verdict(True, "every candidate is accepted", _numbers(compare_sets(champion.scores, candidate.scores)))


@ACCEPTANCE_POLICIES.register("paired_test")
@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Accept a candidate that is significantly better on paired held-out questions, worse on no set, and whose answers are as diverse and
    about as long.

    Options:
        min_gain: least pooled difference of the mean score, in shares (0.01 is one point).
        max_p: largest one-sided p over all questions; 1 switches the test off. For right and wrong it is that of the exact McNemar test
            (McNemar 1947: the binomial test on the questions that only one of the two got right), for graded scores that of the paired
            sign-flip test, its generalisation.
        max_drop: largest loss of the mean score on any single set, in shares.
        min_diversity_ratio: least `distinct_2` as a share of the previous round's.
        max_length_ratio: `mean_answer_words` stays within 1/ratio..ratio of the previous round's.
    """

    min_gain: float = 0.0
    max_p: float = 0.1
    max_drop: float = 0.03
    min_diversity_ratio: float = 0.5
    max_length_ratio: float = 2.0

    def __post_init__(self) -> None:
        check_at_least("min_gain", self.min_gain, -1.0)
        check_share("max_p", self.max_p, allow_zero=False)
        check_share("max_drop", self.max_drop)
        check_share("min_diversity_ratio", self.min_diversity_ratio)
        check_at_least("max_length_ratio", self.max_length_ratio, 1.0)

    def decide(self, champion: Answered, candidate: Answered, context: DecisionContext) -> Verdict:
        by_set = compare_sets(champion.scores, candidate.scores)
        numbers = _numbers(by_set)
        faults = [*self._score_faults(numbers, candidate), *_drops(by_set, self.max_drop, candidate)]
        faults += self._drift_faults(context.generated, context.previous)
        reason = "; ".join(faults) or f"{candidate.measure()} {numbers['difference']:+.4f}, p {numbers['p_value']:.2g}"
        return Verdict(not faults, reason, numbers)

    def _score_faults(self, numbers: Mapping[str, float], candidate: Answered) -> Iterator[str]:
        if numbers["difference"] < self.min_gain:
            yield f"{candidate.measure()} {numbers['difference']:+.4f} is below min_gain {self.min_gain:+.4f}"
        if numbers["p_value"] > self.max_p:
            yield f"p {numbers['p_value']:.2g} is above max_p {self.max_p}"

    def _drift_faults(self, generated: GeneratedStats, previous: GeneratedStats | None) -> list[str]:
        if previous is None:
            return []
        faults = []
        if generated.distinct_2 < self.min_diversity_ratio * previous.distinct_2:
            faults.append(
                f"distinct_2 fell from {previous.distinct_2:.3f} to {generated.distinct_2:.3f}, below {self.min_diversity_ratio} of it"
            )
        low, high = previous.mean_answer_words / self.max_length_ratio, previous.mean_answer_words * self.max_length_ratio
        if not low <= generated.mean_answer_words <= high:
            faults.append(f"mean_answer_words {generated.mean_answer_words:.1f} is outside {low:.1f}..{high:.1f}")
        return faults


@ACCEPTANCE_POLICIES.register("evidence")
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Accept a candidate that is shown to be better, with a bound on errors over the whole run, unless a guard objects.

    A candidate is better when the lower confidence bound of its paired gain over all acceptance questions (bootstrap, see
    `policies.acceptance.paired`) is above `margin` and the paired test agrees: McNemar's exact test where answers are right or wrong,
    else the sign-flip test. Both at the round's level of an online fallback (`policies.acceptance.sequential`): the probability that a
    run accepts any candidate that is no better is at most `alpha`, whatever the number of rounds. Levels follow from the committed
    verdicts alone.

    The same questions serve every round. Until the first candidate is accepted the loop has learned nothing from them but "no", so every
    candidate so far would also have been trained with any other acceptance questions of the same outcome: the bound holds exactly (the
    argument of the Ladder: Blum and Hardt 2015, arXiv 1502.04585). After an acceptance the champion is one that was lucky on these
    questions, which makes false acceptances of its successors rarer and gains a little harder to show.
    `python -m benchmarks.quality.acceptance` measures both.

    Guards; each that is broken is named in the reason:

    - forgetting: on a set of the seed domain (`seed_domain: true` in the config) the candidate is measured against the seed model,
      not against the champion: small losses do not add up unseen.
    - hallucination: share of the answers with an object that is not there (as CHAIR's per-sentence share, Rohrbach et al. 2018,
      arXiv 1809.02156), where a set's world knows the truth; on `yes_no: true` sets the share of the questions to be answered no that
      are answered yes (as in POPE, Li et al. 2023, arXiv 2305.10355). Against the better of champion and seed model.
    - answer length: of the answers to acceptance questions against the seed model's, and of generated answers against round 1's.
    - diversity: distinct-1 and distinct-2 of the generated questions (Li et al. 2016, arXiv 1510.03055), and the share of each
      question type, against round 1's.

    Options:
        margin: what the gain has to exceed, in shares (0.01 is one point).
        alpha: bound on the probability of any false acceptance in the whole run.
        spending: how alpha is divided among the rounds: "harmonic", most to the first ones, or "equal".
        confidence: of the two-sided interval, which is only reported.
        max_drop: largest loss of the mean score against the champion on any single set, in shares.
        max_forgetting: largest loss of the mean score against the seed model on a set of the seed domain, in shares.
        max_hallucination_rise: largest rise of the share of hallucinating answers, in shares.
        max_length_ratio: mean lengths stay within 1/ratio..ratio of their reference.
        min_diversity_ratio: least distinct-1 and distinct-2 of the questions as a share of round 1's.
        min_type_ratio: least share of a question type as a share of round 1's.
    """

    margin: float = 0.0
    alpha: float = 0.05
    spending: Spending = "harmonic"
    confidence: float = 0.95
    max_drop: float = 0.05
    max_forgetting: float = 0.03
    max_hallucination_rise: float = 0.02
    max_length_ratio: float = 2.0
    min_diversity_ratio: float = 0.5
    min_type_ratio: float = 0.25

    def __post_init__(self) -> None:
        for name in ("margin", "max_drop", "max_forgetting", "max_hallucination_rise", "min_diversity_ratio", "min_type_ratio"):
            check_share(name, getattr(self, name))
        for name in ("alpha", "confidence"):
            check_share(name, getattr(self, name), allow_zero=False)
        check_choice("spending", self.spending, ("harmonic", "equal"))
        check_at_least("max_length_ratio", self.max_length_ratio, 1.0)

    def decide(self, champion: Answered, candidate: Answered, context: DecisionContext) -> Verdict:
        by_set = compare_sets(champion.scores, candidate.scores)
        now = self.level(context)
        tail = (1 - self.confidence) / 2
        bound, low, high = quantiles(by_set.values(), now, tail, 1 - tail)
        numbers = {**_numbers(by_set), "low": low, "high": high, "bound": bound, "level": now}
        guards = (self._forgetting, self._hallucination, self._length, self._diversity)
        measured = [guard(champion, candidate, context) for guard in guards]
        for found, _ in measured:
            numbers |= found
        faults = [*self._gain_faults(numbers), *_drops(by_set, self.max_drop, candidate)]
        faults += [fault for _, found in measured for fault in found]
        accepted = [*(verdict.accepted for verdict in context.history), not faults]
        numbers["alpha_spent"] = spent(self.alpha, context.num_rounds, self.spending, accepted)
        shown = f"{candidate.measure()} {points(numbers['difference'], low, high)}, p {numbers['p_value']:.2g} at level {now:.2g}"
        return Verdict(not faults, "; ".join([shown, *faults]), numbers)

    def level(self, context: DecisionContext) -> float:
        """The level that the round's candidate is tested at."""
        return level(self.alpha, context.num_rounds, self.spending, [verdict.accepted for verdict in context.history])

    def _gain_faults(self, numbers: Mapping[str, float]) -> Iterator[str]:
        if numbers["bound"] <= self.margin:
            yield f"the lower bound {100 * numbers['bound']:+.1f} is not above margin {100 * self.margin:+.1f}"
        if numbers["p_value"] > numbers["level"]:
            yield f"p {numbers['p_value']:.2g} is above the level"

    def _forgetting(self, champion: Answered, candidate: Answered, context: DecisionContext) -> _Guarded:
        numbers: dict[str, float] = {}
        faults = []
        for name in sorted(context.seed_domain):
            one = compare(name, context.seed.scores[name], candidate.scores[name])
            low, high = interval([one], self.confidence)
            numbers |= {f"forgetting/{name}": one.difference, f"forgetting_low/{name}": low, f"forgetting_high/{name}": high}
            if one.difference < -self.max_forgetting:
                lost = points(one.difference, low, high)
                what = candidate.measure(name)
                faults.append(f"forgetting on {name}: {lost} of the seed model's {what}, max_forgetting is {self.max_forgetting}")
        return numbers, faults

    def _hallucination(self, champion: Answered, candidate: Answered, context: DecisionContext) -> _Guarded:
        shares = {name: _share_hallucinated(one) for name, one in (("", candidate), ("_champion", champion), ("_seed", context.seed))}
        numbers = {f"hallucinated{name}": share for name, share in shares.items() if share is not None}
        numbers |= {f"yes_share/{name}": share for name, share in candidate.yes_share.items()}
        if len({"hallucinated", "hallucinated_champion", "hallucinated_seed"} & numbers.keys()) < 3:
            return numbers, []
        before = min(numbers["hallucinated_champion"], numbers["hallucinated_seed"])
        if numbers["hallucinated"] <= before + self.max_hallucination_rise:
            return numbers, []
        rise = f"hallucinating answers rose from {100 * before:.1f} % to {100 * numbers['hallucinated']:.1f} %"
        return numbers, [f"{rise}, max_hallucination_rise is {self.max_hallucination_rise}"]

    def _length(self, champion: Answered, candidate: Answered, context: DecisionContext) -> _Guarded:
        numbers = {"answer_words": candidate.mean_words, "generated_words": context.generated.mean_answer_words}
        first = _first(context, numbers)
        return numbers, [
            f"{name} {numbers[name]:.1f} is outside {before / self.max_length_ratio:.1f}..{before * self.max_length_ratio:.1f}"
            for name, before in (("answer_words", context.seed.mean_words), ("generated_words", first["generated_words"]))
            if not before / self.max_length_ratio <= numbers[name] <= before * self.max_length_ratio
        ]

    def _diversity(self, champion: Answered, candidate: Answered, context: DecisionContext) -> _Guarded:
        questions = context.questions
        numbers = {"question_distinct_1": questions.distinct_1, "question_distinct_2": questions.distinct_2}
        numbers |= {f"type_share/{name}": share for name, share in questions.type_shares.items()}
        first = _first(context, numbers)
        least = {name: self.min_diversity_ratio * first[name] for name in ("question_distinct_1", "question_distinct_2")}
        least |= {name: self.min_type_ratio * share for name, share in first.items() if name.startswith("type_share/")}
        return numbers, [
            f"{name} {numbers.get(name, 0.0):.3f} is below {bound:.3f}, {bound / first[name]:g} of round 1's"
            for name, bound in least.items()
            if numbers.get(name, 0.0) < bound
        ]


_Guarded = tuple[dict[str, float], list[str]]
"""What a guard measured, and its objections to the candidate."""


def points(difference: float, low: float, high: float) -> str:
    """A difference of shares with its interval, in points: `+3.1 [+0.8, +5.4]`."""
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _first(context: DecisionContext, numbers: Mapping[str, float]) -> Mapping[str, float]:
    """The numbers of the first round that trained a candidate; in that round, its own."""
    return next((verdict.numbers for verdict in context.history if verdict.numbers), numbers)


def _share_hallucinated(one: Answered) -> float | None:
    known = [flag for flags in one.hallucinated.values() for flag in flags if flag is not None]
    return sum(known) / len(known) if known else None


def _drops(by_set: Mapping[str, Comparison], max_drop: float, candidate: Answered) -> list[str]:
    return [
        f"{candidate.measure(name)} on {name} {one.difference:+.4f} drops by more than max_drop {max_drop}"
        for name, one in by_set.items()
        if one.difference < -max_drop
    ]


def _numbers(by_set: Mapping[str, Comparison]) -> dict[str, float]:
    total = pooled(by_set.values())
    bounds = {} if total.differences is None else dict(zip(("low", "high"), interval(by_set.values()), strict=True))
    return {
        "difference": total.difference,
        "p_value": p_value(total),
        "num_questions": float(total.num_questions),
        "num_won": float(total.num_won),
        "num_lost": float(total.num_lost),
        **bounds,  # for counts they follow from the three numbers above
        **{f"difference/{name}": one.difference for name, one in by_set.items()},
    }
