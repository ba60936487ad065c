"""Judging: the scores that a text model gives to the answers of a round, where a set's metric is `judge`."""

from __future__ import annotations

import logging
from dataclasses import replace

from loop.run.contents import Run
from loop.scoring.run_judge import judge_of
from policies.scoring.answer_metrics import Judge
from policies.scoring.predictions import Predictions

log = logging.getLogger(__name__)

_FOLDER = "judge"
"""Of the run, for the judge's replies."""


def judged(run: Run, predictions: Predictions) -> Predictions:
    """The predictions, with a score by the judge where the set's metric is one; None where it gave no verdict."""
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
