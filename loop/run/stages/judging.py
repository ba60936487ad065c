"""Judging: a text model scores the answers of a round to the sets whose metric is `judge`."""

from __future__ import annotations

import logging
from dataclasses import replace

from loop.run.contents import Run
from loop.scoring.run_judge import judge_of
from policies.scoring.answer_metrics import Judge
from policies.scoring.predictions import Predictions

log = logging.getLogger(__name__)

_FOLDER = "judge"
"""Subfolder of the run for the judge's replies."""


def judged(run: Run, predictions: Predictions) -> Predictions:
    """The predictions, scored by the judge for sets with a judge metric; the score is None if the judge gave no verdict."""
    found = dict(predictions)
    for name, one in run.sets.items():
        if not isinstance(one.metric, Judge):
            continue
        asked = [(question, prediction.answer) for question, prediction in zip(one.questions, predictions[name], strict=True)]
        with run.progress.stage(f"judge {one.name}", total=len(asked) * len(one.metric.looks), unit="reviews") as stage:
            scores = judge_of(one.metric).scores(run.store.storage.workspace(_FOLDER), asked, stage)
        found[name] = [replace(prediction, score=score) for prediction, score in zip(predictions[name], scores, strict=True)]
        if num_missing := scores.count(None):
            log.warning("the judge gave no verdict on %d of %d answers to %s: they are left out", num_missing, len(scores), name)
    return found
