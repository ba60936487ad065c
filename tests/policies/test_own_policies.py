"""Policies of one's own: what is asked of them, what they may bring, and what is told of their errors. The example of the docs runs."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from actors.filter import filter_shard
from actors.shards import Shard, ShardImages
from actors.views import find_view
from loop.config.run_config import parse_config
from loop.setup.rehearsal import rehearse
from policies.columns import compute, round_columns
from policies.counts import RecordCounts
from policies.errors import PolicyError, running
from policies.filtering.chain import FilterChain
from policies.filtering.filters import FILTER_POLICIES, Parsable
from policies.generation.instructions import GenerationTask, QuestionType
from policies.records import Reason, Record, from_table, to_table
from policies.registry import UnknownPolicyError
from policies.training.mixing import Mix, mixed
from policies.training.selection import SELECTION_POLICIES, SelectAll, columns_of, score_of, selected
from tests.loop.test_cli import document
from tests.paths import ROOT
from tests.policies.make import make_record

DOCS = ROOT / "docs" / "policies.md"


class Brightness:
    """Images that are as bright as their ids say."""

    opened: list[str]

    def __init__(self) -> None:
        self.opened = []

    def image_ids(self) -> list[str]:
        return ["0", "40", "200"]

    def open(self, image_id: str) -> Image.Image:
        self.opened.append(image_id)
        return Image.new("RGB", (4, 4), (int(image_id),) * 3)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The filters of the docs' config, its module written beside a run."""
    text = DOCS.read_text(encoding="utf-8")
    code, selection, view = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_filters.py").write_text(code)
    (tmp_path / "my_selection.py").write_text(selection)
    (tmp_path / "my_views.py").write_text(view)
    monkeypatch.syspath_prepend(tmp_path)
    yield yaml.safe_load(config)["filters"]
    for name in ("my_filters", "my_selection", "my_views"):
        sys.modules.pop(name, None)


def test_the_example_of_the_docs_passes_a_dry_run_and_judges_by_the_image(example: Any) -> None:
    config = parse_config(document("embedded", filters=example))
    rehearse(config)
    source = Brightness()
    tasks = tuple(GenerationTask(image_id, QuestionType.DETAIL, "Ask.") for image_id in source.image_ids() for _ in range(2))
    shard = Shard(1, 0, 3, tasks, source)
    records = [make_record(record_id=f"r{number}", image_id=task.image_id) for number, task in enumerate(tasks)]
    written: list[pa.Table] = []
    chain = FilterChain([FILTER_POLICIES.build(spec.policy, spec.options) for spec in config.filters])
    filter_shard(chain, score_of, None, lambda *part: written.append(part[2]), shard, {}, to_table(records))
    judged = from_table(written[0])
    assert [record.reasons for record in judged] == [("too_dark",)] * 4 + [()] * 2
    assert [record.accepted for record in judged] == [False] * 4 + [True] * 2
    assert source.opened == ["0", "40", "200"], "an image is opened once"
    assert RecordCounts.of([*judged, make_record().rejected(Reason.EMPTY)]).by_reason == {"rejected_empty": 1, "rejected_too_dark": 4}


def test_the_selection_of_the_docs_passes_a_dry_run_and_takes_the_middle(example: Any) -> None:
    config = parse_config(document("embedded", filters=example, selection={"my_selection:MiddleLengths": {"share": 0.5}}))
    rehearse(config)
    policy = SELECTION_POLICIES.build(config.selection.policy, config.selection.options)
    records = [make_record(number, answer="word " * number, agreement=float(number != 5)) for number in range(1, 9)]
    assert policy.score(records[0]) == pytest.approx(-0.01)
    columns = round_columns(to_table(records), columns_of(policy))
    taken = [record.record_id for record, one in zip(records, selected(policy, columns).to_pylist(), strict=True) if one]
    assert taken == ["r1-s0-3", "r1-s0-4", "r1-s0-6"]
    assert selected(policy, columns.slice(0, 0)).to_pylist() == []


def test_the_view_of_the_docs_passes_a_dry_run_and_is_shown(example: Any) -> None:
    config = parse_config(document("embedded", filters=example, generation={"view": "my_views:enlarged"}))
    rehearse(config)
    images = ShardImages(Brightness(), find_view(config.generation.view))
    assert images.open("40").size == (8, 8)


def test_images_are_not_opened_for_filters_that_do_not_ask() -> None:
    source = Brightness()
    shard = Shard(1, 0, 3, (GenerationTask("0", QuestionType.DETAIL, "Ask."),), source)
    filter_shard(FilterChain([Parsable()]), score_of, None, lambda *part: None, shard, {}, to_table([make_record(image_id="0")]))
    assert source.opened == []


# ---- what is refused


class Nameless:
    def judge(self, records: Sequence[Record]) -> list[str | None]:
        return [None] * len(records)


class Judgeless:
    name = "judgeless"


class TakesImagesUnasked(Nameless):
    name = "takes_images"
    needs_image = True


class LooseReason(Nameless):
    name = "loose"
    reasons = ("Too dark!",)


class OneReason(Nameless):
    name = "one"
    reasons = "too_dark"


class ChoosesNothing:
    pass


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Nameless", "is not a valid filter policy: it has no name; docs/policies.md says what one needs"),
        ("Judgeless", "is not a valid filter policy: it has no judge"),
        ("TakesImagesUnasked", "its judge does not take (records, open_image)"),
        ("LooseReason", "its reasons are ('Too dark!',); expected a list of names such as"),
        ("OneReason", "its reasons are 'too_dark'; expected a list"),
    ],
)
def test_an_object_that_is_no_filter_is_refused_in_one_line(name: str, text: str) -> None:
    with pytest.raises(UnknownPolicyError, match=re.escape(text)) as caught:
        FILTER_POLICIES.build(f"{__name__}:{name}")
    assert "\n" not in str(caught.value)


def test_an_object_that_is_no_policy_of_its_kind_is_refused() -> None:
    with pytest.raises(UnknownPolicyError, match="is not a valid selection policy: it has no score; it has no select"):
        SELECTION_POLICIES.build(f"{__name__}:ChoosesNothing")


class LooksElsewhere(SelectAll):
    columns = ("agreement", "mood")


def test_a_selection_that_reads_columns_that_do_not_exist_is_refused() -> None:
    with pytest.raises(
        UnknownPolicyError, match=re.escape("its columns ['mood'] do not exist; expected some of ['accepted', 'agreement',")
    ):
        SELECTION_POLICIES.build(f"{__name__}:LooksElsewhere")


@pytest.mark.parametrize(("code", "text"), [("def f(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError")])
def test_a_module_that_cannot_be_imported_shows_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, text: str
) -> None:
    name = f"broken_{text.lower()}"
    (tmp_path / f"{name}.py").write_text(f"\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PolicyError, match=text) as caught:
        FILTER_POLICIES.build(f"{name}:Mine")
    assert f"{name}.py" in caught.value.trace
    assert code in caught.value.trace


# ---- errors of code


class Divides:
    name = "divides"

    def judge(self, records: Sequence[Record]) -> list[str | None]:
        return [self._verdict(record) for record in records]

    def _verdict(self, record: Record) -> str | None:
        return Reason.USER_POLICY if 1 / len(record.view_answers) > 1 else None


def test_an_error_of_a_filter_is_told_with_its_own_frames() -> None:
    with pytest.raises(PolicyError) as caught:
        FilterChain([Parsable(), Divides()]).apply([make_record(view_answers=())])
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error).startswith("filter 'divides' raised ZeroDivisionError: division by zero; fix its code")
    frames = [line.strip() for line in error.trace.splitlines() if line.startswith("  File ")]
    names = [frame.rpartition(" in ")[2] for frame in frames]
    assert (names[0], names[-1]) == ("judge", "_verdict")
    assert "1 / len(record.view_answers)" in error.trace


class Says:
    name = "says"

    def __init__(self, *verdicts: str | None) -> None:
        self.verdicts = verdicts

    def judge(self, records: Sequence[Record]) -> list[str | None]:
        return list(self.verdicts)


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        ((), "filter 'says' gave 0 verdicts on 1 records; expected one each"),
        (("too_dark",), "filter 'says' gave the reason 'too_dark', which is none of ['answers_disagree', "),
    ],
)
def test_verdicts_that_break_the_contract_are_refused(verdicts: tuple[str, ...], text: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(text)):
        FilterChain([Says(*verdicts)]).apply([make_record()])


def test_an_error_that_did_not_pass_through_the_policy_stays_as_it_is() -> None:
    with pytest.raises(KeyError), running("correction policy 'x'", Parsable()):
        raise KeyError("an engine's")
    with pytest.raises(PolicyError), running("correction policy 'x'", Divides()):
        Divides().judge([make_record(view_answers=())])


class Picks:
    """A selection that returns what it is told."""

    columns = ("agreement",)

    def __init__(self, mask: Any) -> None:
        self.mask = mask

    def score(self, record: Record) -> float:
        return 1.0

    def select(self, records: pa.Table) -> Any:
        return self.mask(records) if callable(self.mask) else self.mask


TWO = round_columns(to_table([make_record(0, agreement=1.0), make_record(1, agreement=0.5)]), ["agreement"])


def test_a_selection_may_return_any_mask() -> None:
    for mask in ([True, False], np.array([True, False]), lambda records: compute.greater(records["agreement"], 0.7)):
        assert selected(Picks(mask), TWO).to_pylist() == [True, False]


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ([True], "returned 1 values for 2 records; expected one bool for each"),
        ([True, None], "returned 2 values with 1 nulls for 2 records"),
        ([0, 1], "returned int64 values; expected one bool for each record"),
        (lambda records: records["no_such_column"], "raised KeyError"),
    ],
)
def test_a_wrong_mask_is_refused(mask: Any, text: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(f"selection policy 'Picks' {text}")):
        selected(Picks(mask), TWO)


class Mixes:
    """A mixing policy that returns what it is told."""

    def __init__(self, **arrays: list[Any]) -> None:
        self.arrays = {"source": [0, 1], "row": [0, 1], "form": [0, 2], "draw": [0.0, 0.5], **arrays}

    def mix(self, seed_samples: pa.Table, generated: Sequence[pa.Table], num_samples: int, seed: int) -> Mix:
        return Mix(**{name: np.array(array) for name, array in self.arrays.items()})


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"row": [0]}, "returned arrays of [1] samples; expected 2"),
        ({"row": [0, 2]}, "returned a row that its source does not have"),
        ({"source": [0, 2]}, "returned a source outside of 0..1"),
        ({"form": [0, 0]}, "returned a form that does not fit its source"),
        ({"draw": [0.0, 1.0]}, "returned a draw outside of 0..1"),
        ({"row": [0.5, 0.5]}, "returned source, row and form of types int64, float64, int64; expected integers"),
    ],
)
def test_a_wrong_mix_is_refused(arrays: dict[str, list[Any]], text: str) -> None:
    seed_table = pa.table({"question_type": ["detail"]})
    assert mixed(Mixes(), seed_table, [TWO], 2, seed=0).row.tolist() == [0, 1]
    with pytest.raises(PolicyError, match=re.escape(f"mixing policy 'Mixes' {text}")):
        mixed(Mixes(**arrays), seed_table, [TWO], 2, seed=0)


def test_two_filters_of_one_name_are_counted_apart() -> None:
    chain = FilterChain([Says(None), Says(None), Parsable()])
    assert [count.name for count in chain.apply([make_record()]).counts] == ["says", "says_2", "parsable"]
