"""What the process beside the driver sends while rounds run: their live points, and MLflow's system metrics of this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from loop.config.tracking_config import mlflow_key
from loop.monitors.mirror.live import LiveSender, started_at_ms
from loop.monitors.tracking import Mirror

_SYSTEM_THREAD = "SystemMetricsMonitor"
"""MLflow's own, which ends when its run does or when it cannot reach MLflow."""


class LiveStreams:
    """Sends the points of running rounds to their child runs."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._senders: dict[int, LiveSender | None] = {}
        """By round; None for one that MLflow has completely."""
        self._ids: tuple[str, str] | None = None

    def send(self, files: Mapping[int, Path]) -> None:
        """Send what is new in the files of rounds, whose child runs are created or continued if necessary. Raises what MLflow raises."""
        for number, path in files.items():
            if number not in self._senders:
                run_id = self._mirror.open_round(number, started_at_ms(path))
                self._senders[number] = None if run_id is None else LiveSender(self._mirror.client, run_id, path)
            sender = self._senders[number]
            if sender is not None:
                sender.send()

    def ids(self) -> tuple[str, str] | None:
        """The ids of the experiment and of the parent run, once there is one."""
        self._ids = self._ids or self._mirror.ids()
        return self._ids

    def forget(self) -> None:
        """After an error: find out anew what MLflow has."""
        self._senders.clear()
        self._ids = None


def watch_system(tracking_uri: str, run_id: str) -> None:
    """Have MLflow log this machine's system metrics, with its host name in their names, until the run ends. Does nothing while it does."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    if all(thread.name != _SYSTEM_THREAD for thread in threading.enumerate()):
        node = mlflow_key(socket.gethostname())
        SystemMetricsMonitor(run_id, resume_logging=True, node_id=node, tracking_uri=tracking_uri).start()
