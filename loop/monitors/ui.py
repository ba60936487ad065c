"""`vigc ui`: MLflow's server on the store that a run uses, on loopback, and the address at which it shows the run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote

import psutil

from loop.config.run_config import stored_config
from loop.credentials import masked
from loop.errors import LoopError, UserError
from loop.monitors.mirror.training import TRAINING
from loop.monitors.mirroring import MLFLOW, PLACE, mirror_of, monitor_folder
from loop.monitors.tracking import child_environment
from loop.store.run_store import Store

DEFAULT_PORT = 5000
_SQLITE = "sqlite:///"
_START_S = 120.0
_STOP_S = 10.0
_LOOK_S = 0.3
_SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


class ServerError(LoopError):
    """MLflow's server did not start, or has ended by itself."""


def show(run_dir: str, port: int | None, tell: Callable[[str], None]) -> None:
    """Serve MLflow for a run until Ctrl-C, or only tell the address if the run uses a server.

    Args:
        port: where to listen on loopback; None is 5000, or another if that is taken.
        tell: called with each line for the user.

    Raises:
        UserError: the run or training is not tracked, or MLflow has nothing of it yet.
        ServerError: MLflow's server does not start.
    """
    folder = Path(run_dir)
    uri, ids = _place_of_training(folder) if (folder / TRAINING).is_file() else find_place(Store.open(run_dir))
    if uri.startswith(("http://", "https://")):
        tell(f"MLflow has the run at {masked(page(uri, *ids))}")
        return
    with serving(uri, port) as (server, address):
        tell(f"MLflow shows the run at {page(address, *ids)}")
        tell("Ctrl-C ends the server")
        with suppress(KeyboardInterrupt):
            raise ServerError(f"MLflow's server has ended by itself, with exit code {server.wait()}; start it again")


def find_place(store: Store) -> tuple[str, tuple[str, str]]:
    """The tracking URI of a run, and the ids of its experiment and parent run. Raises `UserError`."""
    config = stored_config(store.read_run().config)
    if MLFLOW not in config.monitors or not config.tracking.enabled:
        raise UserError(f"{store.uri} is not mirrored to MLflow: its config has no monitor mlflow, or tracking.enabled is false")
    place, mirror = _noted(monitor_folder(store) / PLACE), mirror_of(config, store)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or place.get("tracking_uri", mirror.tracking_uri)
    file = Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None
    if file is not None and not file.exists():
        raise UserError(
            f"MLflow's database {file} of {store.uri} does not exist; if it was moved, set MLFLOW_TRACKING_URI to its new place"
        )
    is_noted = "run_id" in place and place.get("tracking_uri", uri) == uri
    ids = (place["experiment_id"], place["run_id"]) if is_noted else replace(mirror, tracking_uri=uri).ids()
    if ids is None:
        raise UserError(
            f"MLflow at {masked(uri)} has nothing of {store.uri} yet; try again in a minute, or see mlflow.log in the run folder"
        )
    return uri, ids


def _place_of_training(folder: Path) -> tuple[str, tuple[str, str]]:
    """The same of a training by `vigc train`."""
    place = _noted(folder / PLACE)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or place.get("tracking_uri")
    if "run_id" not in place or uri is None:
        raise UserError(
            f"MLflow has nothing of the training in {folder} yet; try again in a minute, see {folder / 'mlflow.log'}, and check that its "
            "config does not turn tracking off"
        )
    return uri, (place["experiment_id"], place["run_id"])


def page(address: str, experiment_id: str, run_id: str) -> str:
    """The page of a run. Without the last part, MLflow's UI opens on its overview of traces."""
    return f"{address.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}?workflowType=machine_learning"


@contextmanager
def serving(uri: str, port: int | None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """MLflow's server on a store, and its address. It ends with the block, with all its processes."""
    number = _free_port(port)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(number), "--workers", "1",
        "--backend-store-uri", uri,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vigc-ui-") as folder, (Path(folder) / "log").open("w+b") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**child_environment(), **_SERVER_ENVIRONMENT}, start_new_session=True
        )
        # a job in the background of a shell inherits that SIGINT is ignored
        before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            address = f"http://127.0.0.1:{number}"
            _await_answer(server, address, Path(folder) / "log")
            yield server, address
        finally:
            _end(server)
            for one, handler in before.items():
                signal.signal(one, handler)


def _await_answer(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while True:
        with suppress(URLError, OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        if server.poll() is not None or time.monotonic() > deadline_s:
            *_, last = ["no output", *log.read_text(errors="replace").split("\n")[:-1]]
            raise ServerError(f"MLflow's server does not start: {masked(last.strip())}")
        time.sleep(_LOOK_S)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server with all its processes."""
    try:
        processes = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
    except psutil.NoSuchProcess:
        processes = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait(_STOP_S)


def _free_port(wanted: int | None) -> int:
    """`wanted`, or any free port of loopback, 5000 by preference."""
    for number in (wanted,) if wanted is not None else (DEFAULT_PORT, 0):
        with socket.socket() as one, suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", number))
            return one.getsockname()[1]
    raise UserError(f"port {wanted} of this machine is taken; give another --port, or none")


def _noted(path: Path) -> Mapping[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # a run of an earlier version, or one that has just started
        return {}
