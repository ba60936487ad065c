"""A real MLflow on a SQLite file, and the MLflow side of a small loop."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from loop.monitors.tracking import Mirror, default_tracking_uri, flatten_parameters

EXPERIMENT = "shapes"
RUN_ID = "shapes-7"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowClient(default_tracking_uri(folder / "run", {})).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def mirror(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = default_tracking_uri(tmp_path / "run", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # `MlflowClient.load_table` looks for runs there only
    parameters = flatten_parameters({"run": {"rounds": 2, "sets": [{"name": "near"}]}, "note": "n" * 900, "training": {"num_steps": 6}})
    return Mirror(uri, EXPERIMENT, "a loop", RUN_ID, parameters, source={"mlflow.source.name": "vigc run x.yaml", "mlflow.user": "ada"})
