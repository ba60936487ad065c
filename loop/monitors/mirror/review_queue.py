"""What people are asked about a trace, and the queue in which traces wait for them. Both are MLflow's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from loop.monitors.mirror.models import landed_before

if TYPE_CHECKING:
    from mlflow.tracing.client import TracingClient

REVIEW = "review"
"""Name of people's label of a record."""
RIGHT_ANSWER = "right_answer"
"""Name of the answer that people give instead of a wrong one."""


class LABEL:
    """Values of `REVIEW`."""

    right: Final = "right"
    wrong: Final = "wrong"
    bad_question: Final = "bad question"


LABELS = (LABEL.right, LABEL.wrong, LABEL.bad_question)
_INSTRUCTION = (
    "Look at the picture (View full trace). right: the question can be answered from it, and the answer is right. wrong: the answer is "
    "wrong. bad question: nobody can answer it from the picture."
)
_ANSWER_INSTRUCTION = "If the answer is wrong, the right one. It may stay empty."
_MAX_ITEMS = 100
"""Traces that are put into a queue at a time."""


def put_up(client: TracingClient, experiment_id: str, name: str, trace_ids: Sequence[str]) -> str:
    """Put traces into the review queue `name`, which is created if necessary; those that are in it keep their state.

    Returns why that is not possible with this MLflow; empty if it was. Raises what MLflow raises otherwise.
    """
    from mlflow.exceptions import MlflowException

    try:
        queue_id = _queue(client.store, experiment_id, name)
        for start in range(0, len(trace_ids), _MAX_ITEMS):
            client.store.add_items_to_review_queue(queue_id, item_ids=list(trace_ids[start : start + _MAX_ITEMS]))
    except (NotImplementedError, ImportError) as error:
        return _without_queue(error)
    except MlflowException as error:
        if error.error_code not in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
            raise
        return _without_queue(error)
    return ""


def _without_queue(error: Exception) -> str:
    return f"no review queue, which needs MLflow 3.14 or later ({error}); label them in the trace's page, as feedback named {REVIEW}"


def _queue(store: Any, experiment_id: str, name: str) -> str:
    from mlflow.genai.label_schemas import InputCategorical, InputText

    def schema(of: str, kind: str, shape: Any, instruction: str, comment: bool) -> str:
        return _found_or_made(
            lambda: store.get_label_schema_by_name(experiment_id, of),
            lambda: store.create_label_schema(
                experiment_id, name=of, type=kind, input=shape, instruction=instruction, enable_comment=comment
            ),
        ).schema_id

    asked = [
        schema(REVIEW, "feedback", InputCategorical(options=list(LABELS)), _INSTRUCTION, True),
        schema(RIGHT_ANSWER, "expectation", InputText(), _ANSWER_INSTRUCTION, False),
    ]
    return _found_or_made(
        lambda: store.get_review_queue_by_name(experiment_id, name=name),
        lambda: store.create_review_queue(experiment_id, name=name, queue_type="custom", schema_ids=asked),
    ).queue_id


def _found_or_made(find: Callable[[], Any], make: Callable[[], Any]) -> Any:
    """What `find` finds, made if it is not there; another process may make it at the same time."""
    from mlflow.exceptions import MlflowException

    try:
        return find()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    with landed_before():
        return make()
    return find()
