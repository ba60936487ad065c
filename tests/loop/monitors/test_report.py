"""The tables at the end of a run and the status of a run, as text at a width of 100."""

# ruff: noqa: RUF001 (a dash stands for what was not measured)

from __future__ import annotations

import io
import json

from rich.console import Console

from loop.monitors.report import print_results, print_status, status_dict
from loop.store.commits import Decision, FilterCount, Finding, RoundCommit, RoundState

SETS = ("near", "mid", "far_shift")


def commit(number: int, state: RoundState, metrics: dict[str, float], reason: str = "", kept: tuple[int, ...] = ()) -> RoundCommit:
    filters = ("parsable", "near_duplicate", "answers_agree")
    accepted = state is RoundState.ACCEPTED
    return RoundCommit(
        run_id="shapes-1",
        round=number,
        state=state,
        epoch=1,
        started_at=1_700_000_000.0 + 100 * number,
        committed_at=1_700_000_060.0 + 100 * number,
        champion="w-0001" if number else "w-0000",
        champion_path=f"checkpoints/{number}",
        counts={"generated": 960, "accepted": kept[-1], "trained_on": 200} if kept else {},
        filters=[FilterCount(filter=name, seen=860, kept=count) for name, count in zip(filters, kept, strict=bool(kept))],
        metrics=metrics,
        decision=Decision(accepted=accepted, reason=reason) if reason else None,
        stage_seconds={"round": 61.26},
    )


COMMITS = [
    commit(0, RoundState.BASELINE, {"accuracy/near": 0.68, "accuracy/mid": 0.59, "accuracy/far_shift": 0.37}),
    commit(
        1,
        RoundState.ACCEPTED,
        {
            "correct_before": 0.33,
            "correct_after": 0.412,
            "correct_kept": 0.7,
            "accuracy/near": 0.675,
            "accuracy/mid": 0.61,
            "accuracy/far_shift": 0.49,
        },
        "mean accuracy rose by 0.041, more than the margin of 0.005",
        (900, 870, 310),
    ),
    commit(
        2,
        RoundState.REJECTED,
        {"correct_before": float("nan"), "correct_kept": 0.71, "accuracy/near": 0.675, "accuracy/far_shift": 0.49},
        "accuracy fell on near by 0.021 [allowed: 0.010]",
        (910, 880, 333),
    ),
]

RESULTS = """\
What each round wrote

                                         images set      correct      correct     correct
 round   generated   kept   trained on        aside    before, %     after, %     kept, %   seconds
 ──────────────────────────────────────────────────────────────────────────────────────────────────
     1         960    310          200            –         33.0         41.2        70.0      61.3
     2         960    333          200            –            –            –        71.0      61.3

Records kept by each filter

 round   generated   parsable   near duplicate   answers agree
 ─────────────────────────────────────────────────────────────
     1         960        900              870             310
     2         960        910              880             333

What the champion can do after each round: accuracy, %

 round   near    mid   far shift   outcome
 ──────────────────────────────────────────────────────────────────────────────────────────────────
     0   68.0   59.0        37.0   seed model
     1   67.5   61.0        49.0   accepted: mean accuracy rose by 0.041, more than the margin of
                                   0.005
     2   67.5      –        49.0   rejected: accuracy fell on near by 0.021 [allowed: 0.010]

  gain   -0.5      –       +12.0   points over the seed model

"""


def rendered(commits: list[RoundCommit]) -> str:
    out = io.StringIO()
    print_results(Console(file=out, width=100), commits, SETS)
    return without_trailing_blanks(out)


def test_stale_records_have_a_column_where_there_are_some() -> None:
    stale = COMMITS[1].model_copy(update={"counts": {**COMMITS[1].counts, "stale_corrected": 960}})
    header, first, second = (line for line in rendered([COMMITS[0], stale, COMMITS[2]]).splitlines()[3:7] if "──" not in line)
    assert header.split()[:4] == ["round", "generated", "stale", "kept"]
    assert first.split()[:4] == ["1", "960", "960", "corrected"]
    assert second.split()[:4] == ["2", "960", "–", "333"]


def last_row(commits: list[RoundCommit]) -> list[str]:
    return rendered(commits).rstrip().splitlines()[-1].split()


def without_trailing_blanks(out: io.StringIO) -> str:
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def test_the_results_read_as_three_tables() -> None:
    assert rendered(COMMITS) == RESULTS


def test_the_order_of_the_commits_does_not_matter() -> None:
    assert rendered(COMMITS[::-1]) == rendered(COMMITS)


def test_a_long_chain_of_filters_is_continued_in_a_further_table() -> None:
    chain = [FilterCount(filter=f"user.policies:filter_number_{n}", seen=8, kept=8 - n) for n in range(8)]
    text = rendered([COMMITS[0], COMMITS[1].model_copy(update={"filters": chain})])
    assert "Records kept by each filter (continued)" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_log_of_eighty_columns_shows_every_heading_and_number() -> None:
    chain = [FilterCount(filter=f"filter_number_{n}", seen=8000, kept=7000 - n) for n in range(8)]
    commits = [COMMITS[0], COMMITS[1].model_copy(update={"filters": chain})]
    out = io.StringIO()
    print_results(Console(file=out, width=80), commits, SETS)
    print_status(Console(file=out, width=80), "shapes-1", "finished", commits)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text, "nothing is cut off"
    assert {"(UTC)", "generated", *map(str, range(8)), *(str(7000 - n) for n in range(8)), COMMITS[0].champion} <= set(text.split())


def test_a_run_with_only_a_baseline_has_no_gain_yet() -> None:
    assert last_row(COMMITS[:1])[:4] == ["gain", "+0.0", "+0.0", "+0.0"]


def test_a_run_without_commits_has_dashes() -> None:
    assert last_row([])[:4] == ["gain", "–", "–", "–"]


STATUS = """\
run shapes-1: stopped, champion w-0001

 round   state      generated   kept   trained on   champion   seconds   committed (UTC)
 ───────────────────────────────────────────────────────────────────────────────────────
     0   baseline           –      –            –   w-0000        61.3       11-14 22:14
     1   accepted         960    310          200   w-0001        61.3       11-14 22:16
     2   rejected         960    333          200   w-0001        61.3       11-14 22:17

"""


def test_the_status_is_a_line_per_round() -> None:
    out = io.StringIO()
    print_status(Console(file=out, width=100), "shapes-1", "stopped", COMMITS)
    assert without_trailing_blanks(out) == STATUS


def test_the_status_for_programs_is_plain_json() -> None:
    status = json.loads(json.dumps(status_dict("shapes-1", "running", COMMITS), allow_nan=False))
    assert {name: status[name] for name in ("run_id", "state", "champion")} == {
        "run_id": "shapes-1",
        "state": "running",
        "champion": "w-0001",
    }
    assert [entry["accepted"] for entry in status["rounds"]] == [False, True, False]
    assert status["rounds"][1]["counts"] == {"generated": 960, "accepted": 310, "trained_on": 200}
    assert status["rounds"][2]["metrics"]["correct_before"] is None


def test_a_run_without_commits_has_a_status() -> None:
    assert status_dict("shapes-1", "new", []) == {"run_id": "shapes-1", "state": "new", "champion": None, "rounds": []}


EVIDENCE = {
    "difference": 0.031, "low": 0.008, "high": 0.054, "p_value": 0.00412, "level": 0.0171, "alpha_spent": 0.0, "num_questions": 600.0,
    "num_won": 60.0, "num_lost": 41.0, "hallucinated": 0.052, "forgetting/acceptance/near": -0.012, "forgetting_low/acceptance/near": -0.03,
    "forgetting_high/acceptance/near": 0.004,
}  # fmt: skip
CONTROL = {f"control/seed_only/pooled_difference{end}": value for end, value in (("", 0.02), ("_low", -0.001), ("_high", 0.041))}


def decided(numbers: dict[str, float], metrics: dict[str, float]) -> list[RoundCommit]:
    decision = Decision(accepted=True, reason="", numbers=numbers)
    return [COMMITS[0], COMMITS[1].model_copy(update={"decision": decision, "metrics": {**COMMITS[1].metrics, **metrics}})]


def test_a_decision_shows_its_intervals_and_what_controls_say() -> None:
    text = rendered(decided(EVIDENCE, CONTROL))
    shown = text.split("What each candidate has over the others: points [interval]\n")[1].split("What the champion can do")[0]
    for cell in ("+3.1 [+0.8, +5.4]", "0.0041", "0.017", "5.2", "-1.2 [-3.0, +0.4]", "+2.0 [-0.1, +4.1]"):
        assert cell in shown, (cell, shown)
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_decision_without_an_interval_gets_it_from_its_counts() -> None:
    numbers = {"difference": 0.05, "p_value": 0.0001, "num_questions": 1000.0, "num_won": 75.0, "num_lost": 25.0}
    text = rendered(decided(numbers, {}))
    assert "+5.0 [+3.1, +7.0]" in text
    assert not [word for word in ("level", "alpha", "hallucinate", "held out") if word in text]


def test_the_status_has_decisions_and_controls() -> None:
    out = io.StringIO()
    commits = decided(EVIDENCE, CONTROL)
    print_status(Console(file=out, width=100), "shapes-1", "stopped", commits)
    assert "+2.0 [-0.1, +4.1]" in out.getvalue()
    (baseline, first) = json.loads(json.dumps(status_dict("shapes-1", "stopped", commits), allow_nan=False))["rounds"]
    assert baseline["decision"] is None
    assert first["decision"]["numbers"]["low"] == 0.008
    assert first["metrics"]["control/seed_only/pooled_difference_low"] == -0.001


FINDINGS = [
    Finding(kind="passed_over", count=3, message="samples without a target token were not trained on", example="photo[1].jpg"),
    Finding(kind="left_out", count=1, message="record was left out"),
]


def test_findings_are_a_line_each_under_the_tables_and_in_the_status_for_programs() -> None:
    commits = [COMMITS[0], COMMITS[1].model_copy(update={"findings": FINDINGS})]
    out = io.StringIO()
    print_status(Console(file=out, width=60), "shapes-1", "stopped", commits)
    lines = [
        "round 1: passed_over (3): samples without a target token were not trained on; for example: photo[1].jpg",
        "round 1: left_out (1): record was left out",
    ]
    assert out.getvalue().splitlines()[-2:] == lines
    assert rendered(commits).splitlines()[-2:] == lines
    rounds = status_dict("shapes-1", "running", commits)["rounds"]
    assert [entry["findings"] for entry in rounds] == [[], [finding.model_dump() for finding in FINDINGS]]


def test_graded_sets_are_shown_by_what_is_measured() -> None:
    numbers = {
        "difference": 0.012,
        "low": 0.004,
        "high": 0.021,
        "p_value": 0.002,
        "num_questions": 100.0,
        "num_won": 60.0,
        "num_lost": 40.0,
    }
    first = commit(1, RoundState.ACCEPTED, {"likelihood/dev": 0.412, "accuracy/pope": 0.8}, "likelihood +0.0120, p 0.002")
    first = first.model_copy(update={"decision": Decision(accepted=True, reason="likelihood +0.0120, p 0.002", numbers=numbers)})
    seed = commit(0, RoundState.BASELINE, {"likelihood/dev": 0.4, "accuracy/pope": 0.8})
    out = io.StringIO()
    print_results(Console(file=out, width=100), [seed, first], ("dev", "pope"))
    shown = out.getvalue()
    assert "What the champion can do after each round: mean score, 0 to 100" in shown
    assert "dev, likelihood" in shown
    assert "+1.2 [+0.4, +2.1]" in shown
    assert "41.2" in shown
