"""Premises: asks the model about the objects that a question names before the question is answered."""

from __future__ import annotations

from dataclasses import replace

from actors.correction.asking import CorrectionClient
from policies.correction.evidence import Evidence
from policies.correction.premises import named_objects, premise_questions
from policies.records import Record


def check_premises(client: CorrectionClient, evidence: Evidence, records: list[Record]) -> list[Record]:
    """Add the premise questions with their replies, and the phrases that a reply refutes, to the records. Equal questions about an
    image are asked once, all in one batch."""
    refutes = evidence.refutation()
    asked = {
        (record.image_id, phrase): [
            (question, client.request(record, prompt=question)) for question in premise_questions(phrase, evidence.premise_questions)
        ]
        for record in records
        for phrase in named_objects(record.question)
    }
    texts = iter([one.text for one in client.greedy([request for group in asked.values() for _, request in group])] if asked else [])
    replies = {key: [(question, next(texts)) for question, _ in group] for key, group in asked.items()}

    def checked(record: Record) -> Record:
        given = {phrase: replies[record.image_id, phrase] for phrase in named_objects(record.question)}
        return replace(
            record,
            premise_answers=tuple(f"{question} {text}" for pairs in given.values() for question, text in pairs),
            refuted_premises=tuple(phrase for phrase, pairs in given.items() if any(refutes.search(text) for _, text in pairs)),
        )

    return [checked(record) for record in records]
