"""`vigc questions`: questions about an embedded world with their exact answers, for the benchmark `exact`."""

from __future__ import annotations

from pathlib import Path

from loop.errors import UserError
from loop.sources.worlds.build import EXAMPLES, build_world, names_world, parse_world
from loop.store.files import write_lines


def write_world_questions(text: str, out: Path, num_questions: int | None, seed: int) -> int:
    """Write held-out questions about a set of a world, the three types in equal shares.

    Args:
        text: the set, as `loop.sources.worlds.build` reads it.
        out: JSON Lines to write.
        num_questions: one per image if None.
        seed: of the draws.

    Returns:
        how many there are.

    Raises:
        UserError: the text is invalid, drawings cannot be used, or a number is out of range.
    """
    if not names_world(text):
        raise UserError(f"{text!r} names no embedded world; expected, for example, {' or '.join(EXAMPLES.values())}")
    if (num_questions is not None and num_questions < 1) or seed < 0:
        raise UserError("expected --num-questions of 1 or more, and a --seed of 0 or more")
    source = build_world(parse_world(text, "WORLD"))
    questions = source.questions(len(source.image_ids()) if num_questions is None else num_questions, seed)
    write_lines(out, [
        {
            "question_id": one.question_id, "image": one.image_id, "text": one.question, "answer": one.answer,
            "category": str(one.question_type),
        }
        for one in questions
    ])  # fmt: skip
    return len(questions)
