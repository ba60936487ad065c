"""What differs between nodes is one line each: what, where, and what to do."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.resources.node_report import Answer, NodeReport, ask_nodes, problems, reported, versions

HERE = {"Python": "3.11.7", "Ray": "2.60.0", "vigc-loop's source": "aaaa"}
REPORT = NodeReport(HERE, unix_s=1000.0, absent=(), run_folder="")


def answer(report: NodeReport | None, node: str = "10.0.0.2 (b)", error: str = "") -> Answer:
    return Answer(node, report, error, asked_at=999.0, answered_at=1030.0)


def test_nodes_alike_have_no_problem_and_a_slow_answer_is_not_a_wrong_clock() -> None:
    clocks = (1000.0, 939.5, 1089.5)
    assert problems([answer(replace(REPORT, unix_s=clock)) for clock in clocks], HERE) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"versions": {**HERE, "Ray": "2.55.0"}}, "Ray is 2.55.0 there, and 2.60.0 for the driver; install the same version on all nodes"),
        (
            {"versions": {**HERE, "vigc-loop's source": "bbbb"}},
            "vigc-loop's source is bbbb there, and aaaa for the driver; update it there",
        ),
        ({"unix_s": 1120.0}, "its clock is 90 s ahead of the driver's"),
        ({"unix_s": 900.0}, "its clock is 99 s behind the driver's"),
        ({"absent": ("/data/coco",)}, "/data/coco is not there or cannot be read; put it on every node"),
        ({"run_folder": "the run folder /runs/a cannot be used"}, "the run folder /runs/a cannot be used"),
    ],
)
def test_a_node_that_differs_is_named_with_what_to_do(changed: dict[str, object], line: str) -> None:
    (found,) = problems([answer(REPORT, "10.0.0.1 (a)"), answer(replace(REPORT, **changed))], HERE)
    assert found.startswith(f"node 10.0.0.2 (b): {line}")


def test_nodes_with_the_same_problem_share_a_line() -> None:
    lost = replace(REPORT, absent=("/m",))
    answers = [answer(lost, f"10.0.0.{n} (n{n})") for n in range(1, 6)] + [answer(None, error="did not answer within 5 s")]
    assert problems(answers, HERE) == [
        "nodes 10.0.0.1 (n1), 10.0.0.2 (n2), 10.0.0.3 (n3) and 2 more: /m is not there or cannot be read; put it on every node at the same "
        "path, or on a folder that all share",
        "node 10.0.0.2 (b): did not answer within 5 s",
    ]


def test_a_report_names_paths_that_are_missing(tmp_path: Path) -> None:
    report = reported("id", [str(tmp_path), str(tmp_path / "none")], lambda node_id: f"visited by {node_id}")
    assert report.absent == (str(tmp_path / "none"),)
    assert report.run_folder == "visited by id"
    assert report.versions == versions()


def not_installed(node_id: str) -> str:
    raise ModuleNotFoundError("No module named 'loop'")


@pytest.mark.usefixtures("cluster")
def test_a_real_node_answers_or_says_why_it_cannot(tmp_path: Path) -> None:
    assert problems(ask_nodes([str(tmp_path)], str.lower, timeout_s=30), {**versions(), "Ray": "1.0"})[0].endswith("on all nodes")
    (found,) = problems(ask_nodes([], not_installed, timeout_s=30), versions())
    assert "cannot run this project: " in found
    assert "No module named 'loop'; install it there" in found
