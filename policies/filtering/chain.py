"""The chain of filters: it collects and counts verdicts on records.

No single signal tells a right answer from a wrong one; independent signals multiply, so filters come in a chain. A filter sees
only what its predecessors kept, and a rejected record stays in the data with its first reason. `docs/policies.md` says how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, cast, runtime_checkable

from policies.correction.methods import CorrectionPolicy
from policies.errors import MissingMeasurementError, PolicyError, running
from policies.records import REASON_NAME, Reason, Record
from policies.registry import missing_members
from policies.texts import free_name

if TYPE_CHECKING:
    from PIL import Image

OpenImage = Callable[[str], "Image.Image"]
"""Opens the image of this id, as RGB; the last opened ones are kept. Raises `actors.images.BadImageError`."""


class FilterPolicy(Protocol):
    """One reason to keep or reject records.

    A user-defined filter may also have `reasons`, the names of reject reasons that it adds to those of
    `policies.records.Reason`: lower-case words joined by underscores. They are counted like the others.
    """

    @property
    def name(self) -> str:
        """Name under which its counts are kept."""
        ...

    def judge(self, records: Sequence[Record]) -> Sequence[str | None]:
        """A reason against each record, in order, or None to keep it.

        `records` are those of one shard that earlier filters kept; all tasks of an image are in the same shard.
        """
        ...


class ImageFilter(Protocol):
    """A filter that looks at the images, which it declares by a true `needs_image`."""

    needs_image: bool

    @property
    def name(self) -> str:
        """As that of `FilterPolicy`."""
        ...

    def judge(self, records: Sequence[Record], open_image: OpenImage) -> Sequence[str | None]:
        """As `FilterPolicy.judge`; `open_image(record.image_id)` is the image of a record, as training sees it."""
        ...


def needs_image(policy: FilterPolicy | ImageFilter) -> TypeGuard[ImageFilter]:
    """Whether a filter is shown the images."""
    return bool(getattr(policy, "needs_image", False))


def filter_faults(policy: Any) -> list[str]:
    """Why an object is not a filter, one text per fault."""
    faults = missing_members(policy, ImageFilter if needs_image(policy) else FilterPolicy)
    name = getattr(policy, "name", None)
    if not faults and not (isinstance(name, str) and name.strip() and name.isprintable()):
        faults.append(f"its name is {name!r}; expected a text")
    reasons = getattr(policy, "reasons", ())
    if isinstance(reasons, str) or not all(isinstance(one, str) and REASON_NAME.fullmatch(one) for one in reasons):
        faults.append(f"its reasons are {reasons!r}; expected a list of names such as ['too_dark']")
    return faults


@runtime_checkable
class MeasuringFilter(Protocol):
    """A filter that needs certain settings of the correction policy."""

    def missing(self, correction: CorrectionPolicy) -> list[str]:
        """What to change in the correction settings, one text per change; empty when the filter can work."""
        ...


@dataclass(frozen=True, slots=True)
class Workload:
    """What a round gives to its filters, as far as the config determines it."""

    num_per_image: int
    """Records tried per image."""
    question_types: frozenset[str]
    """Types that questions are generated of."""
    max_new_tokens: int
    """Largest number of tokens of a VIG output."""
    correction: CorrectionPolicy


@runtime_checkable
class MaybeIdleFilter(Protocol):
    """A filter that can tell whether it has an effect in a run."""

    def idle(self, workload: Workload) -> str:
        """Why it can reject nothing, and what to change; empty if it can."""
        ...


class StageCount(NamedTuple):
    """How many records a filter saw and kept."""

    name: str
    seen: int
    kept: int


@dataclass(frozen=True, slots=True)
class ChainResult:
    """All records of a shard, judged, in their order; and the counts in the order of the chain."""

    records: list[Record]
    counts: list[StageCount]


class FilterChain:
    """Filters one after the other."""

    def __init__(self, policies: Sequence[FilterPolicy | ImageFilter]) -> None:
        self.policies = tuple(policies)
        self.names = _told_apart([policy.name for policy in policies])
        """Names for the counts of each; a repeated one has a number."""

    def apply(self, records: Sequence[Record], open_image: OpenImage | None = None) -> ChainResult:
        """Judge the records of one shard: survivors become `accepted`, the others carry their first reason.

        Records that come with reasons (`UNREADABLE_IMAGE`) stay rejected, unseen by any filter. `open_image` is for the filters that
        need the images.

        Raises:
            PolicyError: a filter raised an error, gave another number of verdicts than it was given records, or a reason that it does
                not declare.
        """
        reasons: dict[int, str] = {}
        alive = [index for index, record in enumerate(records) if not record.reasons]
        counts = []
        for name, policy in zip(self.names, self.policies, strict=True):
            verdicts = _verdicts(policy, [records[index] for index in alive], open_image)
            reasons |= {index: verdict for index, verdict in zip(alive, verdicts, strict=True) if verdict is not None}
            counts.append(StageCount(name, len(alive), verdicts.count(None)))
            alive = [index for index in alive if index not in reasons]
        survivors = set(alive)
        judged = [replace(record, accepted=index in survivors) for index, record in enumerate(records)]
        for index, reason in reasons.items():
            judged[index] = judged[index].rejected(reason)
        return ChainResult(judged, counts)


def _verdicts(policy: FilterPolicy | ImageFilter, records: Sequence[Record], open_image: OpenImage | None) -> list[str | None]:
    """A filter's verdicts on records, checked against its contract."""
    label = f"filter {policy.name!r}"
    with running(label):
        if needs_image(policy):
            assert open_image is not None, f"{label} needs the images"
            verdicts = list(policy.judge(records, open_image))
        else:
            verdicts = list(cast("FilterPolicy", policy).judge(records))
    if len(verdicts) != len(records):
        raise PolicyError(label, f"gave {len(verdicts)} verdicts on {len(records)} records; expected one each")
    known = {*map(str, Reason), *getattr(policy, "reasons", ())}
    if unknown := [verdict for verdict in verdicts if verdict is not None and verdict not in known]:
        raise PolicyError(label, f"gave the reason {unknown[0]!r}, which is none of {sorted(known)}; name it in its `reasons`")
    return [None if verdict is None else str(verdict) for verdict in verdicts]


def _told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names; the second of the same name ends in `_2`, and so on."""
    found: list[str] = []
    for name in names:
        found.append(free_name(name, found))
    return tuple(found)


def check_measurements(filters: Iterable[FilterPolicy | ImageFilter], correction: CorrectionPolicy) -> None:
    """Check the filters against the correction settings, before a run starts.

    Raises:
        MissingMeasurementError: a filter reads what is not measured; the message names the settings to change.
    """
    faults = [
        f"filter {policy.name!r} needs {change}"
        for policy in filters
        if isinstance(policy, MeasuringFilter)
        for change in policy.missing(correction)
    ]
    if faults:
        raise MissingMeasurementError("; ".join(faults))
