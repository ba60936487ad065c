"""What runs on which node: `vigc plan`, and nodes that are assumed."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.planning.packing import NodeResources
from loop.cli import app
from loop.config.run_config import RunConfig, load_config
from loop.errors import UserError
from loop.setup.plan_table import print_plan
from loop.setup.planning import Available, assumed_nodes, planned_now
from tests.paths import RECIPES

LLAVA = RECIPES / "vigc-llava-7b.yaml"


def amounts(*texts: str) -> list[tuple[float, float]]:
    return [(node.cpus, node.gpus) for node in assumed_nodes(texts, use_gpus=True)]


def test_assumed_nodes_have_cpus_gpus_or_both() -> None:
    assert amounts("4x8") == [(math.inf, 8)] * 4
    assert amounts("1x96c8g", "2x32c") == [(96, 8), (32, 0), (32, 0)]
    assert [node.name for node in assumed_nodes(["1x8", "2x4"], use_gpus=True)] == ["node 1", "node 2", "node 3"]


@pytest.mark.parametrize("text", ["8", "4x", "x8", "0x8", "4x8g96c", "4x8x2", "4 x 8"])
def test_other_texts_are_refused_with_what_is_meant(text: str) -> None:
    with pytest.raises(UserError, match="expected nodes and what each has: 4x8"):
        assumed_nodes([text], use_gpus=True)


def test_a_run_without_gpus_is_told_to_name_cpus() -> None:
    with pytest.raises(UserError, match="4x8 names only GPUs, and this run uses none"):
        assumed_nodes(["4x8"], use_gpus=False)


def shown(config: RunConfig, available: Available) -> list[str]:
    text = io.StringIO()
    print_plan(Console(file=text), config, planned_now(config, available), available)
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_a_plan_names_the_actors_of_each_node_and_what_else_it_needs() -> None:
    done = CliRunner().invoke(app, ["plan", str(LLAVA), "--assume-nodes", "1x96c4g", "--assume-nodes", "2x32c2g"])
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:5] == [
        "on assumed nodes",
        "node CPUs GPUs engines trainer ranks filters free CPUs free GPUs",
        "node 1 96 4 0-3 0-3 0-3 64 0",
        "node 2 32 2 4-5 4-5 4-5 16 0",
        "node 3 32 2 6-7 6-7 6-7 16 0",
    ]
    assert "needed on the driver's machine: the model models/llava-1.5-7b-hf" in lines
    (images,) = (line for line in lines if line.startswith("needed on each of the 3 nodes with actors: the images in "))
    assert images.endswith("data/objects365/train")
    assert "needed on each of the 3 nodes with actors: vLLM" in lines


def test_a_plan_that_does_not_fit_is_one_line_with_what_the_config_accepts_in_its_place() -> None:
    """7 ranks would fit, and cannot share a batch."""
    done = CliRunner().invoke(app, ["plan", str(LLAVA), "--assume-nodes", "1x64c7g"])
    assert done.stdout == ""
    assert isinstance(done.exception, UserError)
    assert "there are 64 CPU(s) and 7 GPU(s). It fits with num_engines 7 and trainer_ranks 4; or on a larger cluster." in str(
        done.exception
    )


def test_a_plan_is_made_for_what_others_leave_free_or_says_that_a_run_waits() -> None:
    config = load_config(RECIPES / "shapes.yaml", ["cluster.address=127.0.0.1:1"])
    has = (NodeResources("a", 2), NodeResources("b", 4))
    lines = shown(config, Available(has, (NodeResources("a", 0), NodeResources("b", 4)), "the cluster"))
    assert lines[1:4] == [
        "node used by others CPUs engines trainer ranks filters free CPUs",
        "a 2 CPU(s) 2 - - - 0",
        "b - 4 0-1 0-1 0 2",
    ]
    assert not any("waits" in line for line in lines)
    lines = shown(config, Available(has, (NodeResources("a", 1), NodeResources("b", 0)), "the cluster"))
    assert "a run waits for the rest for at most 180 s" in lines[-1]
