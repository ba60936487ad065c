"""A fleet of real vLLM engines: killed and hung in the middle of a swap, refused, and rolled while it serves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from actors.engines import EngineSpec
from actors.engines.base import Sampling, WeightUpdate
from actors.engines.errors import WeightMismatchError
from actors.engines.transformers import TransformersEngine
from actors.generator import GeneratorOptions
from cluster.fleet.fleet import Fleet
from cluster.fleet.health import State
from cluster.fleet.slot import engine_actor
from loop.config.run_config import EMBEDDED_MODEL
from policies.correction.methods import SentenceBySentence
from tests.vllm.breakable import BreakableWorker
from tests.vllm.worlds import changed, requests, seed_weights, update_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

START_S, SWAP_S = 150.0, 15.0
WHOLE_AGAIN_S = START_S + 2 * SWAP_S
"""A swap that hangs is given up after `SWAP_S`; then a new engine is made and swapped."""
REQUESTS = requests(8)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Path]]:
    pytest.importorskip("vllm", reason="needs vLLM: make install-vllm")
    folder = tmp_path_factory.mktemp("marks")
    spec = EngineSpec("vllm", str(EMBEDDED_MODEL), {"cpu_kv_cache_gib": 0.25})
    worker = engine_actor(BreakableWorker, num_cpus=1)

    def spawn(index: int) -> Any:
        return worker.remote(index, folder, spec, GeneratorOptions(), SentenceBySentence())

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    made = Fleet(spawn, 2, task_timeout_s=60, start_timeout_s=START_S, swap_timeout_s=SWAP_S)
    try:
        made.start(update("seed", 0))
        yield made, folder
    finally:
        made.shutdown(30)
        ray.shutdown()


def update(version: str, seed: int) -> WeightUpdate:
    return update_of(changed(seed_weights(), seed) if seed else seed_weights(), version)


def say(seed: int) -> list[tuple[int, ...]]:
    """What the weights say, by transformers."""
    reference = TransformersEngine(EMBEDDED_MODEL)
    reference.swap(update("reference", seed))
    return [one.token_ids for one in reference.complete(REQUESTS, Sampling(24))]


def assert_serves(fleet: Fleet, version: str, seed: int) -> None:
    """Both engines answer, with these weights and no others."""
    assert fleet.states() == [State.HEALTHY, State.HEALTHY]
    assert fleet.weight_version == version
    for engine in fleet.engines:
        answers = ray.get(engine.answer.remote(REQUESTS), timeout=60)
        assert {one.weight_version for one in answers} == {version}
        assert [one.token_ids for one in answers] == say(seed) * 2


@pytest.mark.parametrize(("number", "engine"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_an_engine_that_ends_or_hangs_in_the_middle_of_a_swap_is_replaced(
    fleet: tuple[Fleet, Path], number: signal.Signals, engine: int
) -> None:
    whole, folder = fleet
    version = f"after {number.name}"
    before, restarts = processes(), whole.num_restarts
    (folder / f"break_{engine}").write_text(str(number.value))
    started = time.monotonic()

    whole.swap(update(version, 10 + engine))

    assert time.monotonic() - started < WHOLE_AGAIN_S
    assert whole.num_restarts == restarts + 1
    assert_serves(whole, version, 10 + engine)
    assert len(before & processes()) == 1, "the broken engine's process is left behind"


def test_a_refused_update_leaves_the_fleet_as_it_was(fleet: tuple[Fleet, Path]) -> None:
    whole, _ = fleet
    whole.swap(update("good", 3))
    restarts = whole.num_restarts
    for bad in (
        update_of({name: one for name, one in changed(seed_weights(), 4).items() if "up_proj" not in name}, "bad"),
        update_of(changed(seed_weights(), 4), "bad", digest="0" * 64),
    ):
        with pytest.raises(WeightMismatchError):
            whole.swap(bad)
    assert whole.num_restarts == restarts
    assert_serves(whole, "good", 3)


def test_engines_are_swapped_one_after_the_other_while_the_rest_serve(fleet: tuple[Fleet, Path]) -> None:
    whole, _ = fleet
    whole.swap(update("old", 5))
    expected = {"old": say(5) * 2, "new": say(6) * 2}
    seen: list[str] = []

    def submit(engine: Any, _: int) -> ray.ObjectRef:
        return engine.answer.remote(REQUESTS)

    for number, (_, answers) in enumerate(whole.run(range(60), submit)):
        if number == 10:
            whole.roll(update("new", 6))
        (version,) = {one.weight_version for one in answers}
        assert [one.token_ids for one in answers] == expected[version]
        seen.append(version)

    assert len(seen) == 60
    assert set(seen) == {"old", "new"}
    assert_serves(whole, "new", 6)


def processes() -> set[psutil.Process]:
    """Processes of engines below this one."""
    return {one for one in psutil.Process().children(recursive=True) if "BreakableWorker" in one.name() + " ".join(one.cmdline())}
