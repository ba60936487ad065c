"""Every family on the vLLM engine, compared with the model's own `generate`.

    python -m benchmarks.speed.vllm_families [FAMILY ...]

The models are the small untrained ones of `tests/actors/engines`, built from the real classes with their real processors. Each is started
in a process of its own, serves its weights after a swap that compares it with its own class, answers, and does so again with other weights.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from actors.engines.base import Sampling, WeightUpdate
from actors.engines.errors import UnfitModelError
from actors.engines.probe import make_probe
from actors.engines.vllm.engine import VllmEngine
from actors.engines.vllm.options import VllmOptions
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from benchmarks.common import argument_parser, write_results
from loop.config.engine_config import VllmEngineConfig
from loop.errors import UserError
from loop.models.checks import check_model
from tests.actors.engines.families import FAMILIES, REQUESTS, by_the_model_itself

_MAX_NEW_TOKENS = 10
_IN_BFLOAT16 = ("qwen3_5",)
"""Families whose layers vLLM's CPU build has in no other dtype, and packs, so that every swap needs a probe."""


@dataclass(frozen=True)
class Row:
    """One family. A family that is refused has a reason and no answers."""

    family: str
    dtype: str
    start_seconds: float = 0.0
    """The engine's construction, without vLLM's import."""
    swap_seconds: float = 0.0
    """The first swap, with the comparison."""
    attested_by: str = ""
    """Of the second swap; the first one is compared with a probe as well."""
    num_answers: int = 0
    num_equal: tuple[int, int] = (0, 0)
    """Answers equal to those of `generate`, token for token, before and after the second swap."""
    num_changed: int = 0
    """Answers that the second swap has changed."""
    refused: str = ""


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argument_parser(__doc__, "vllm_families.json")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"by default all of {', '.join(FAMILIES)}")
    args = parser.parse_args()
    rows = [serve_alone(family) for family in args.families or FAMILIES]
    print_rows(rows)
    write_results(args.out, rows)


def serve_alone(family: str) -> Row:
    """`serve` in a process of its own, because vLLM can be constructed once in each. They are forked from one that has imported vLLM."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # read at import
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vllm", __name__])
    with tempfile.TemporaryDirectory(prefix="vigc-families-") as scratch, ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(serve, family, Path(scratch)).result(600)


def serve(family: str, scratch: Path) -> Row:
    """Check, start, swap and ask one family, then swap and ask again."""
    torch.set_num_threads(1)
    dtype, attest = ("bfloat16", "probe") if family in _IN_BFLOAT16 else ("float32", "auto")
    checkpoint = _in_dtype(FAMILIES[family][0](scratch), dtype)
    other = _with_other_weights(checkpoint, scratch / "other")
    try:
        check_model(str(checkpoint), VllmEngineConfig.model_validate({"kind": "vllm", "dtype": dtype}))
        expected = [by_the_model_itself(folder, REQUESTS, _MAX_NEW_TOKENS, getattr(torch, dtype)) for folder in (checkpoint, other)]
        started = time.perf_counter()
        engine = VllmEngine(checkpoint, VllmOptions(dtype=dtype, attest=attest, cpu_kv_cache_gib=0.25, max_model_len=512))
        start_seconds = time.perf_counter() - started
        first, second = _update(checkpoint, dtype, probed=True), _update(other, dtype, probed=attest == "probe")
        attested = engine.swap(first)
        answers = [_answers(engine)]
        engine.swap(second)
        answers.append(_answers(engine))
    except (UserError, UnfitModelError) as error:
        return Row(family, dtype, refused=str(error).replace(f"{checkpoint}", family))
    equal = [sum(map(tuple.__eq__, *pair)) for pair in zip(answers, expected, strict=True)]
    return Row(
        family, dtype, start_seconds, attested.seconds,
        "probe" if attest == "probe" else "bytes", len(REQUESTS), (equal[0], equal[1]),
        sum(map(tuple.__ne__, *answers)),
    )  # fmt: skip


def print_rows(rows: list[Row]) -> None:
    table = Table("family", "dtype", "start, s", "first swap, s", "attests by", "equal answers", "changed by a swap", box=None)
    for row in rows:
        if row.refused:
            table.add_row(row.family, row.dtype, "refused")
            continue
        equal = " and ".join(f"{one} of {row.num_answers}" for one in row.num_equal)
        seconds = f"{row.start_seconds:.1f}", f"{row.swap_seconds:.1f}"
        table.add_row(row.family, row.dtype, *seconds, row.attested_by, equal, str(row.num_changed))
    console = Console(width=160)
    console.print(table)
    for row in rows:
        if row.refused:
            console.print(f"{row.family}: {row.refused}", soft_wrap=True)


def _in_dtype(checkpoint: Path, dtype: str) -> Path:
    tensors = read_checkpoint(checkpoint)
    save_file(
        {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}, checkpoint / "model.safetensors", {"format": "pt"}
    )
    return checkpoint


def _with_other_weights(checkpoint: Path, folder: Path) -> Path:
    tensors = {name: tensor * 1.25 if tensor.ndim > 1 else tensor for name, tensor in read_checkpoint(checkpoint).items()}
    shutil.copytree(checkpoint, folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _update(checkpoint: Path, dtype: str, *, probed: bool) -> WeightUpdate:
    tensors = read_checkpoint(checkpoint)
    probe = make_probe(checkpoint, dtype, 1) if probed else None
    return WeightUpdate(checkpoint.name, digest_of(tensors), manifest_of(tensors), checkpoint=checkpoint, probe=probe)


def _answers(engine: VllmEngine) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in engine.complete(REQUESTS, Sampling(_MAX_NEW_TOKENS))]


if __name__ == "__main__":
    main()
