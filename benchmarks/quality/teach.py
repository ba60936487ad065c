"""How fast teacher data is written: by the exact program, and by an endpoint that takes 100 ms per answer.

    python -m benchmarks.quality.teach [--images 2000] [--concurrency 16] [--requests 600] [--out benchmarks/results/teach.json]

The endpoint is a real HTTP server in its own process on 127.0.0.1. The concurrency limit allows concurrency / 0.1 s requests. Measured is
the whole command except its start: prompts, requests, parsing, journal. The fastest of several repeats is reported beside all of them,
because other load can only slow a repeat down.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from rich.console import Console

from actors.chat.endpoint_options import EndpointOptions
from benchmarks.common import argument_parser, write_results
from loop.sources.shapes.source import ShapesImages
from loop.teaching.teach import TeachOptions, teach
from policies.generation.instructions import QuestionType

ANSWER_S = 0.1
REPEATS = 3
_TEXT = "Question: What is there?\nAnswer: There is a cat.\n===\nQuestion: Where is it?\nAnswer: It is on the mat."


def main() -> None:
    """Measure both and write the results."""
    parser = argument_parser(__doc__, "teach.json")
    parser.add_argument("--images", type=int, default=2000, help="of the exact program's; three records each")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=600)
    args = parser.parse_args()
    report = {
        "exact": [exact(args.images) for _ in range(REPEATS)],
        "endpoint": [endpoint(args.concurrency, args.requests) for _ in range(REPEATS)],
        "load_average": round(os.getloadavg()[0], 1),
        "num_cpus": os.cpu_count(),
    }
    report["exact_best_records_per_s"] = max(one["records_per_s"] for one in report["exact"])
    report["endpoint_best_share_of_bare_client"] = max(one["share_of_bare_client"] for one in report["endpoint"])
    report["endpoint_best_share"] = max(one["share_of_allowed"] for one in report["endpoint"])
    write_results(args.out, report)
    print(json.dumps(report, indent=1))


def exact(num_images: int) -> dict[str, float]:
    """Records per second of the exact program, by wall-clock time and by CPU time of this process."""
    with tempfile.TemporaryDirectory(prefix="vigc-teach-") as folder:
        options = TeachOptions(Path(folder, "out"), world=ShapesImages(7, 0.0, 0.15, num_images), teacher="exact")
        wall_s, cpu_s, summary = _measured(options)
    assert summary["num_records"] == 3 * num_images
    return {
        "num_records": 3 * num_images,
        "records_per_s": round(3 * num_images / wall_s, 1),
        "records_per_cpu_s": round(3 * num_images / cpu_s, 1),
    }


def endpoint(concurrency: int, num_requests: int) -> dict[str, float]:
    """Requests per second, compared with what the concurrency limit allows."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        if not here.poll(60.0):
            raise TimeoutError("the server did not start within 60 s")
        url = f"http://127.0.0.1:{here.recv()}/v1"
        with tempfile.TemporaryDirectory(prefix="vigc-teach-") as folder:
            options = TeachOptions(
                Path(folder, "out"), world=ShapesImages(7, 0.0, 0.15, num_requests), types=(QuestionType.CONVERSATION,),
                endpoint=EndpointOptions(url, "bench", max_concurrency=concurrency),
            )  # fmt: skip
            wall_s, cpu_s, summary = _measured(options)
        bare_s = asyncio.run(_bare(url, concurrency, num_requests))
    finally:
        server.terminate()
        server.join()
    assert summary["num_records"] == num_requests == summary["usage"]["num_requests"]
    allowed_per_s = concurrency / ANSWER_S
    return {
        "concurrency": concurrency,
        "requests_per_s": round(num_requests / wall_s, 1),
        "allowed_per_s": allowed_per_s,
        "share_of_allowed": round(num_requests / wall_s / allowed_per_s, 3),
        "share_of_bare_client": round(bare_s / wall_s, 3),
        "cpu_ms_per_request": round(1000 * cpu_s / num_requests, 2),
    }


async def _bare(url: str, concurrency: int, num_requests: int) -> float:
    """Seconds that a minimal client takes for the same requests: an upper bound on the speed on a busy machine."""
    left = iter(range(num_requests))

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"{url}/chat/completions", json={"messages": [{"role": "user", "content": "x" * 3000}]}) as response:
                await response.read()

    started_s = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
    return time.perf_counter() - started_s


def _measured(options: TeachOptions) -> tuple[float, float, dict[str, Any]]:
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    summary = teach(options, Console(quiet=True))
    return time.perf_counter() - started_s, time.process_time() - started_cpu_s, summary


def serve(port_to: Connection) -> None:
    """Answer every request after `ANSWER_S`, until this process is killed."""
    asyncio.run(_serve(port_to))


async def _serve(port_to: Connection) -> None:
    async def answer(request: web.Request) -> web.Response:
        due_s = time.monotonic() + ANSWER_S
        await request.read()
        await asyncio.sleep(due_s - time.monotonic())
        usage = {"prompt_tokens": 900, "completion_tokens": 40}
        return web.json_response({"choices": [{"message": {"content": _TEXT}, "finish_reason": "stop"}], "usage": usage})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port_to.send(runner.addresses[0][1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
