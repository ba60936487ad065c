"""The overhead of the vLLM engine on top of vLLM, and the prefix-cache hits of correction.

    python -m benchmarks.speed.engine [--requests 180]

Speed: greedy answers of `VllmEngine.complete`, compared with `LLM.generate` of the same vLLM object on the same rendered prompts and with
the transformers engine on the same requests, in turn in one single-threaded process. Caches are emptied before each repetition.
Prefix cache: a shard is generated and then corrected on the same engine; the prompt tokens of the correction are counted.
Models: the seed model (9 image tokens), and a random model of its size with LLaVA-1.5's images (576 image tokens), which answers
everything with the same three sentences; in the correction it is asked questions of the world.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.correction.corrector import Corrector
from actors.engines import EngineSpec, build_engine
from actors.engines.base import Completion, Request, Sampling
from actors.engines.prompting import Prompter
from actors.generator import Generator, GeneratorOptions
from actors.shards import Shard, ShardImages
from benchmarks.common import argument_parser, recorded, write_results
from benchmarks.speed.serving import in_child, machine, save_talkative
from cluster.fleet.weights import prepare
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.source import ShapesImages
from policies.correction.methods import CorrectionPolicy, Grounded, SentenceBySentence
from policies.generation.instructions import QuestionType, plan_tasks

_MAX_NEW_TOKENS = 64
_SOURCE = ShapesImages(5001, 0.0, 0.6, 300)
_BARE: dict[str, Any] = {"num_views": 0, "describe": False, "measure_blank": False}
POLICIES: dict[str, CorrectionPolicy] = {
    "sentence by sentence": SentenceBySentence(one_sentence_per_pass=True, **_BARE),
    "the same in one pass": SentenceBySentence(one_sentence_per_pass=False, **_BARE),
    "the same with two further views and a description": SentenceBySentence(one_sentence_per_pass=True, measure_blank=False),
    "grounded": Grounded(**_BARE),
    "grounded, without other views": Grounded(num_looks=0, **_BARE),
}
"""Correction policies. Another view is another image, so nothing of it is cached at first."""


@dataclass(frozen=True)
class Speed:
    """Greedy answers to the same questions; tokens per second, medians."""

    model: str
    num_requests: int
    num_tokens: int
    """Tokens written by the engine, including end tokens."""
    engine: float
    direct: float
    transformers: float
    engine_per_direct: float
    """Median ratio over the repetitions."""
    num_equal_direct: int
    """Answers with the same tokens."""
    num_equal_transformers: int


@dataclass(frozen=True)
class Reuse:
    """Prompts of one correction."""

    model: str
    policy: str
    num_records: int
    sentences_per_answer: float
    num_prompts: int
    num_prompt_tokens: int
    num_cached_tokens: int

    @property
    def share(self) -> float:
        return self.num_cached_tokens / self.num_prompt_tokens


def main() -> None:
    """Measure, print the tables, write them as JSON."""
    parser = argument_parser(__doc__, "engine.json")
    parser.add_argument("--requests", type=int, default=180, help="a third of them to the model of 576 patches")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--images", type=int, default=16, help="of the shard that is corrected, two records each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vigc-engine-") as scratch:
        many_patches = Path(scratch) / "many-patches"
        in_child(save_talkative, many_patches)
        models = {"seed": EMBEDDED_MODEL, "576 patches": many_patches}
        num_requests = {"seed": args.requests, "576 patches": args.requests // 3}
        speeds = [in_child(measure_speed, name, folder, num_requests[name], args.repetitions) for name, folder in models.items()]
        reuses = [reuse for name, folder in models.items() for reuse in in_child(measure_reuse, name, folder, args.images)]
    print_tables(speeds, reuses, Console(width=140))
    report = {
        "machine": machine(),
        "speeds": speeds,
        "reuses": [asdict(one) | {"share": one.share} for one in reuses],
    }
    write_results(args.out, report)


def measure_speed(model: str, checkpoint: Path, num_requests: int, num_repetitions: int) -> Speed:
    """Measure three ways to the same answers in turn, after one uncounted turn."""
    engine = _serving("vllm", checkpoint)
    transformers = _serving("transformers", checkpoint)
    images = ShardImages(_SOURCE)
    requests = [
        Request(images.open(one.image_id), one.question, image_key=images.key(one.image_id)) for one in _SOURCE.questions(num_requests, 0)
    ]
    unkept = [replace(request, image_key="") for request in requests]  # so that every repetition encodes its images
    sampling = Sampling(_MAX_NEW_TOKENS)
    ways: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        "engine": lambda: _token_ids(engine.complete(requests, sampling)),
        "direct": partial(generate_directly, engine.llm, direct_prompts(checkpoint, requests)),
        "transformers": lambda: _token_ids(transformers.complete(unkept, sampling)),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    written: dict[str, list[tuple[int, ...]]] = {}
    for turn in range(1 + num_repetitions):
        for way in (*list(ways)[turn % 3 :], *list(ways)[: turn % 3]):  # each is first equally often, when processor caches are cold
            empty_caches(engine.llm)
            started = time.perf_counter()
            written[way] = ways[way]()
            rates[way].append(sum(map(len, written[way])) / (time.perf_counter() - started))
    counted = {way: found[1:] for way, found in rates.items()}
    return Speed(
        model=model,
        num_requests=num_requests,
        num_tokens=sum(map(len, written["engine"])),
        **{way: median(found) for way, found in counted.items()},
        engine_per_direct=median(ours / theirs for ours, theirs in zip(counted["engine"], counted["direct"], strict=True)),
        num_equal_direct=_num_equal(written["engine"], written["direct"]),
        num_equal_transformers=_num_equal(written["engine"], written["transformers"]),
    )


def direct_prompts(checkpoint: Path, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Prompts as a caller of vLLM would pass them: rendered text, image and image key."""
    prompter = Prompter(checkpoint)
    return [
        {
            "prompt": prompter.render(request),
            "multi_modal_data": {"image": request.image},
            "multi_modal_uuids": {"image": request.image_key},
        }
        for request in requests
    ]


def generate_directly(llm: Any, prompts: Sequence[dict[str, Any]]) -> list[tuple[int, ...]]:
    """The tokens of vLLM's answers, without the end token."""
    vllm: Any = import_module("vllm")
    outputs = llm.generate(prompts, vllm.SamplingParams(max_tokens=_MAX_NEW_TOKENS, temperature=0.0), use_tqdm=False)
    end = llm.get_tokenizer().eos_token_id
    return [tuple(token for token in output.outputs[0].token_ids if token != end) for output in outputs]


def measure_reuse(model: str, checkpoint: Path, num_images: int) -> list[Reuse]:
    """Generate and correct a shard with each policy, from empty caches. Two records per image; questions of the world replace the
    generated ones."""
    engine = _serving("vllm", checkpoint)
    source = replace(_SOURCE, num_images=num_images)
    shard = Shard(1, 0, 0, tuple(plan_tasks(source.image_ids(), dict.fromkeys(QuestionType, 1.0), 2, seed=0)), source)
    by_image = sorted(source.questions(2 * num_images, seed=0), key=lambda one: source.image_ids().index(one.image_id))
    reuses = []
    for name, policy in POLICIES.items():
        empty_caches(engine.llm)
        images = ShardImages(source)
        generated = Generator(engine, GeneratorOptions(temperature=0.0), images).generate(shard)
        written = [replace(record, question=question.question) for record, question in zip(generated, by_image, strict=True)]
        with recorded(engine.llm, "generate") as outputs:
            records = Corrector(engine, policy, images).correct(shard, written)
        answered = [len(record.sentences) for record in records if record.question]
        reuses.append(
            Reuse(
                model=model,
                policy=name,
                num_records=len(answered),
                sentences_per_answer=sum(answered) / len(answered),
                num_prompts=len(outputs),
                num_prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
                num_cached_tokens=sum(output.num_cached_tokens for output in outputs),
            )
        )
    return reuses


def empty_caches(llm: Any) -> None:
    """Empty the caches of keys and values, encoded images and processed images."""
    assert llm.reset_prefix_cache(), "requests are running"
    llm.llm_engine.reset_encoder_cache()
    llm.reset_mm_cache()


def _serving(kind: str, checkpoint: Path) -> Any:
    engine = build_engine(EngineSpec(kind, str(checkpoint)))
    engine.swap(prepare(checkpoint, checkpoint.name, "checkpoint"))
    return engine


def _token_ids(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def _num_equal(one: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]) -> int:
    return sum(mine == yours for mine, yours in zip(one, other, strict=True))


def print_tables(speeds: Sequence[Speed], reuses: Sequence[Reuse], console: Console) -> None:
    table = Table(
        "model", "answers", "tokens", "engine, tokens/s", "vLLM", "engine / vLLM", "transformers", "equal: vLLM, transformers", box=None
    )
    for one in speeds:
        rates = f"{one.engine:.0f}", f"{one.direct:.0f}", f"{one.engine_per_direct:.2f}", f"{one.transformers:.0f}"
        table.add_row(
            one.model, str(one.num_requests), str(one.num_tokens), *rates, f"{one.num_equal_direct}, {one.num_equal_transformers}"
        )
    console.print(table)
    table = Table("model", "correction", "records", "sentences each", "prompts", "tokens each", "from the cache", box=None)
    for one in reuses:
        tokens = f"{one.num_prompt_tokens / one.num_prompts:.0f}"
        counts = str(one.num_records), f"{one.sentences_per_answer:.1f}", str(one.num_prompts), tokens
        table.add_row(one.model, one.policy, *counts, f"{one.share:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
