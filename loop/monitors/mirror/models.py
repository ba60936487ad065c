"""The models of a run in MLflow: every checkpoint is a logged model, and the champion a version of the registered model.

A logged model refers to its checkpoint; the weights stay where they are. `loop.monitors.mirror.answering` loads it and answers questions:

    mlflow.pyfunc.load_model("models:/vigc-NAME@champion").predict([{"image": "photo.jpg", "question": "What is it?"}])
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loop.monitors.mirror.answering import REFERENCE, UNAVAILABLE

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION_ALIAS = "champion"
_LOADER = "loop.monitors.mirror.answering"


def log_model(client: MlflowClient, experiment_id: str, child_id: str, tags: Mapping[str, str], step: int) -> str:
    """The id of the logged model that the run `child_id` has made, which is created if necessary.

    Args:
        tags: `weight_version` and `checkpoint` are among them; see `reference`.
        step: the round.
    """
    model_id = _made_by(client, experiment_id, child_id, tags)
    outputs = client.get_run(child_id).outputs
    if model_id not in {one.model_id for one in (outputs.model_outputs if outputs else [])}:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(child_id, [LoggedModelOutput(model_id, step)])
    return model_id


def log_evaluated_model(client: MlflowClient, experiment_id: str, run_id: str, tags: Mapping[str, str]) -> str:
    """The id of the logged model that the run `run_id` has evaluated: the one with this `weight_version`, which another run may have made,
    or a new one."""
    found = client.search_logged_models([experiment_id], f"tags.weight_version = '{tags['weight_version']}'")
    model_id = next((model.model_id for model in found if model.status.name == "READY"), None)
    model_id = model_id or _made_by(client, experiment_id, run_id, tags)
    inputs = client.get_run(run_id).inputs
    if model_id not in {one.model_id for one in (inputs.model_inputs if inputs else [])}:
        from mlflow.entities import LoggedModelInput

        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    return model_id


def _made_by(client: MlflowClient, experiment_id: str, child_id: str, tags: Mapping[str, str]) -> str:
    """The id of the logged model of a run, which is created if necessary."""
    found = _logged_by(client, experiment_id, child_id)
    if not found:
        name = re.sub(r"[/:.%\"']", "_", tags["weight_version"])
        client.create_logged_model(experiment_id, name, child_id, dict(tags), model_type="image-text-to-text")
        found = _logged_by(client, experiment_id, child_id)
    first, *repeated = found
    for model in repeated:  # MLflow's client retried a create that timed out, and both arrived
        client.delete_logged_model(model.model_id)
    if first.status.name != "READY":
        with tempfile.TemporaryDirectory(prefix="vigc-model-") as folder:
            _write(Path(folder), first, child_id, tags)
            client.log_model_artifacts(first.model_id, folder)
        client.finalize_logged_model(first.model_id, "READY")
    return first.model_id


def register(client: MlflowClient, name: str, model_id: str, child_id: str, tags: Mapping[str, str], identity: Mapping[str, str]) -> None:
    """Make a logged model a version of the registered model `name`, and move its alias `champion` there. A version whose tags contain
    `identity` is that model."""
    if not client.search_registered_models(f"name='{name}'"):
        with landed_before():
            client.create_registered_model(name)
    found = _versions(client, name, identity)
    if not found:
        client.create_model_version(name, f"models:/{model_id}", run_id=child_id, tags=dict(tags), model_id=model_id)
        found = _versions(client, name, identity)
    for repeated in found[1:]:
        client.delete_model_version(name, str(repeated.version))
    client.set_registered_model_alias(name, CHAMPION_ALIAS, str(found[0].version))


@contextmanager
def landed_before() -> Iterator[None]:
    """Ignore that the object already exists: MLflow's client repeats a create whose reply was lost."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged_by(client: MlflowClient, experiment_id: str, child_id: str) -> list[LoggedModel]:
    """Oldest first."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{child_id}'")
    return sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))


def _versions(client: MlflowClient, name: str, tags: Mapping[str, str]) -> list[ModelVersion]:
    """Versions of the registered model with these tags, oldest first."""
    versions = client.search_model_versions(f"name='{name}'")
    return sorted((version for version in versions if tags.items() <= version.tags.items()), key=lambda version: int(version.version))


def _write(folder: Path, model: LoggedModel, child_id: str, tags: Mapping[str, str]) -> None:
    """Write the files of a logged model."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    inputs = Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "question")])
    described = Model(
        run_id=child_id, model_id=model.model_id, signature=ModelSignature(inputs, Schema([ColSpec(DataType.string)])), metadata=dict(tags)
    )
    pyfunc.add_to_model(described, _LOADER, data=REFERENCE)
    described.save(str(folder / "MLmodel"))
    (folder / REFERENCE).write_text(json.dumps({"checkpoint": tags.get("checkpoint", UNAVAILABLE), **tags}, indent=1))
