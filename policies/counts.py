"""What a part of a round says of its records: counts that add up over parts, so that a round is known without reading its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from policies.records import Reason, Record

REJECTED = "rejected_"
"""What names of counts begin with that are of one reason."""
_ADDED = {"held_out_images", "held_out_example"}
"""Fields that counts of earlier versions lack; they have their default."""


@dataclass(frozen=True)
class RecordCounts:
    """Counts of some records. All records about an image are in one part, so that images add up, too."""

    generated: int = 0
    accepted: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Records by reason; a record counts once for each of its reasons."""
    images: int = 0
    unreadable_images: int = 0
    unreadable_example: str = ""
    """What is wrong with the first of them."""
    held_out_images: int = 0
    """Images that are not used because they are tested on."""
    held_out_example: str = ""
    """The first of them, and the tested image that it shows."""
    right: Mapping[str, int] = field(default_factory=dict)
    """Right answers among `judged`, see `correctness`."""
    judged: Mapping[str, int] = field(default_factory=dict)
    weight_versions: tuple[str, ...] = ()
    """Weights that generated records."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> RecordCounts:
        """The counts of records."""
        unreadable, held_out = _set_aside(records, Reason.UNREADABLE_IMAGE), _set_aside(records, Reason.HELD_OUT_IMAGE)
        marks = _marks(records)
        return cls(
            generated=len(records),
            accepted=sum(record.accepted for record in records),
            rejected=dict(Counter(str(reason) for record in records for reason in set(record.reasons))),
            images=len({record.image_id for record in records}),
            unreadable_images=len(unreadable),
            unreadable_example=next((detail or image_id for image_id, detail in unreadable.items()), ""),
            held_out_images=len(held_out),
            held_out_example=next(iter(held_out.values()), ""),
            right={name: sum(marked) for name, marked in marks.items() if marked},
            judged={name: len(marked) for name, marked in marks.items() if marked},
            weight_versions=tuple(sorted({record.generator_weight_version for record in records})),
        )

    @classmethod
    def total(cls, parts: Iterable[RecordCounts]) -> RecordCounts:
        """The sum over parts, in their order."""
        found = list(parts)
        return cls(
            generated=sum(one.generated for one in found),
            accepted=sum(one.accepted for one in found),
            rejected=_added(one.rejected for one in found),
            images=sum(one.images for one in found),
            unreadable_images=sum(one.unreadable_images for one in found),
            right=_added(one.right for one in found),
            judged=_added(one.judged for one in found),
            unreadable_example=next((one.unreadable_example for one in found if one.unreadable_example), ""),
            held_out_images=sum(one.held_out_images for one in found),
            held_out_example=next((one.held_out_example for one in found if one.held_out_example), ""),
            weight_versions=tuple(sorted({version for one in found for version in one.weight_versions})),
        )

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> RecordCounts:
        """Counts as `stored` wrote them, in this version or in one without `_ADDED`.

        Raises:
            ValueError: it holds other fields.
        """
        if stored.keys() | _ADDED != {one.name for one in fields(cls)}:
            raise ValueError(f"counts of records hold {sorted(stored)}; expected {sorted(one.name for one in fields(cls))}")
        return cls(**{**stored, "weight_versions": tuple(stored["weight_versions"])})

    @property
    def stored(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "weight_versions": list(self.weight_versions)}

    @property
    def by_reason(self) -> dict[str, int]:
        """Number of records by `rejected_REASON`, in the order of `Reason`, then reasons of user-defined filters."""
        names = [*map(str, Reason), *sorted(self.rejected.keys() - set(map(str, Reason)))]
        return {f"{REJECTED}{name}": self.rejected[name] for name in names if self.rejected.get(name)}

    @property
    def correctness(self) -> dict[str, float]:
        """Shares of right answers among records whose truth is known; a key without such records is left out.

        `correct_before` is over VIG's own answers and `correct_after` over the corrected ones, of the same records: those with a
        question and both truths known. A question that was not answered because its premise was refuted counts only in the first.
        `correct_kept` is over the corrected answers of accepted records.
        """
        return {name: self.right[name] / number for name, number in self.judged.items() if number}


def rejections(counts: Mapping[str, int]) -> dict[str, int]:
    """Rejected records by reason, the most frequent first, of counts as a commit record has them."""
    found = {name.removeprefix(REJECTED): count for name, count in counts.items() if name.startswith(REJECTED) and count}
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def _set_aside(records: Sequence[Record], reason: Reason) -> dict[str, str]:
    """The images that were set aside for a reason, with the details of it."""
    return {record.image_id: record.reason_detail for record in records if reason in record.reasons}


def _marks(records: Sequence[Record]) -> dict[str, list[bool]]:
    known = [r for r in records if r.question and r.original_correct is not None and r.answer_correct is not None]
    return {
        "correct_before": [bool(r.original_correct) for r in known],
        "correct_after": [bool(r.answer_correct) for r in known if r.answer],
        "correct_kept": [r.answer_correct for r in records if r.accepted and r.answer_correct is not None],
    }


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
