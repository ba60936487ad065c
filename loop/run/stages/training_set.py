"""The training set of a model: seed data and generated records, mixed by the mixing policy, and the pairs for DPO, as files that the ranks
map into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.training.samples import StoredSamples, write_samples
from loop.run.contents import Run
from loop.setup.assembly import derived_seed
from loop.setup.routing import image_set_name
from loop.sources.routed import routed
from loop.store.commits import Finding, RoundState
from loop.store.selected import SelectedRows, committed_rows
from policies.columns import MIXING_COLUMNS, compute
from policies.generation.instructions import vig_target
from policies.generation.knowledge import drawn_answer, vic_prompt
from policies.records import TrainingSample
from policies.training.mixing import Form, Mix, mixed
from policies.training.objectives import Dpo
from policies.training.pairs import EVIDENCE_COLUMNS, TEXT_COLUMNS, is_changed, is_evident, pairs_of

_MAX_COPIES = 20
"""Mean copies of a generated record or pair in a training above which a finding is reported: LLaVA and VIGC train for 1 to 12 epochs."""
_READ = ("record_id", "image_id", "question_type", "instruction", "question", "short_answers", "short_answer_weights")


@dataclass(frozen=True)
class Generated:
    """Generated records that a training set may draw from: those of one round that are trained on."""

    rows: SelectedRows
    image_set: str
    """The image set of the round, see `loop.setup.routing`."""
    corrected: bool = True
    """Whether the answers are the corrected ones. VIG's original ones leave out records for which it gave none."""

    def table(self) -> pa.Table:
        """`MIXING_COLUMNS` of the records."""
        table = self.rows.table.select(MIXING_COLUMNS)
        if self.corrected:
            return table
        none = pa.array(np.zeros(table.num_rows, dtype=np.int32))
        without = table.set_column(table.schema.get_field_index("num_short_answers"), "num_short_answers", none)
        return without.filter(table["has_original_answer"])

    def positions(self) -> np.ndarray:
        """The position among `rows` of each row of `table()`."""
        return np.arange(len(self.rows)) if self.corrected else np.flatnonzero(self.rows.table["has_original_answer"].to_numpy())


@dataclass(frozen=True)
class TrainingSet:
    """Samples in training order, and what a person should know of them."""

    samples: StoredSamples
    findings: list[Finding]


def generated_so_far(run: Run, index: int, selected: SelectedRows) -> list[Generated]:
    """The generated records of accepted rounds and of round `index`, oldest first."""
    history = [(commit.round, committed_rows(run.store, commit)) for commit in run.commits if commit.state is RoundState.ACCEPTED]
    return [
        Generated(rows, image_set_name(run.config, run.policies.schedule, round_index))
        for round_index, rows in [*history, (index, selected)]
    ]


def training_set(run: Run, index: int, generated: Sequence[Generated], num_samples: int, folder: Path) -> TrainingSet:
    """Draw the samples of round `index` and write them to `folder`. Image ids are prefixed with their set.

    Raises:
        PolicyError: the mixing policy raised an error or broke its contract.
        DamagedFileError: a part of a round is missing or altered.
    """
    seed_table = pa.table({"question_type": pa.array([sample.question_type for sample in run.seed_samples], pa.string())})
    seed = derived_seed(run.config.seed, index, "mix")
    mix = mixed(run.policies.mixing, seed_table, [one.table() for one in generated], num_samples, seed)
    sources = [np.flatnonzero(mix.source == number) for number in range(len(generated) + 1)]
    seeds, numbers = np.unique(mix.row[sources[0]], return_inverse=True)
    samples: list[Iterable[TrainingSample]] = [map(run.seed_samples.__getitem__, seeds.tolist())]
    order, num_distinct = np.zeros(num_samples, dtype=np.int64), len(seeds)
    order[sources[0]] = numbers
    for one, places in zip(generated, sources[1:], strict=True):
        entries = _Entries.of(mix, places)
        samples.append(_samples(one, entries))
        order[places] = entries.numbers + num_distinct
        num_distinct += len(entries.rows)
    stored = write_samples(folder, chain.from_iterable(samples), order)
    return TrainingSet(stored, repeated_records(mix, stored))


@dataclass(frozen=True)
class _Entries:
    """The distinct samples of one source, by ascending row."""

    rows: np.ndarray
    forms: np.ndarray
    draws: np.ndarray
    numbers: np.ndarray
    """Which of them each sample of the source is, in training order."""

    @classmethod
    def of(cls, mix: Mix, places: np.ndarray) -> _Entries:
        rows, forms, draws = mix.row[places], mix.form[places], mix.draw[places]
        order = np.lexsort((draws, forms, rows))
        is_new = np.ones(len(order), dtype=bool)
        is_new[1:] = np.any([np.diff(array[order]) != 0 for array in (rows, forms, draws)], axis=0)
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.cumsum(is_new) - 1
        first = order[is_new]
        return cls(rows[first], forms[first], draws[first], numbers)


def _samples(generated: Generated, entries: _Entries) -> Iterator[TrainingSample]:
    """The samples of entries, in their order; one part of records is in memory at a time."""
    answers = "answer" if generated.corrected else "original_answer"
    rows, first = np.unique(entries.rows, return_index=True)
    ends = np.append(first[1:], len(entries.rows))
    done = 0
    for records in generated.rows.read([*_READ, answers], generated.positions()[rows]):
        columns = [records[name].to_pylist() for name in (*_READ, answers)]
        for record_id, image_id, question_type, instruction, question, short, weights, answer in zip(*columns, strict=True):
            image = routed(generated.image_set, image_id)
            for entry in range(first[done], ends[done]):
                if entries.forms[entry] == Form.VIG:
                    turn = instruction, vig_target(question, answer)
                else:
                    said = drawn_answer(answer, short if generated.corrected else (), weights, entries.draws[entry])
                    turn = vic_prompt(question_type, question), said
                yield TrainingSample(image, (turn,), record_id, question_type)
            done += 1


def training_pairs(
    run: Run, index: int, selected: SelectedRows, dpo: Dpo, num_drawn: int, folder: Path
) -> tuple[StoredSamples | None, list[Finding]]:
    """Write the pairs of the selected records of round `index` to `folder`: the chosen and the rejected conversation of each, in turn. If
    there are more than the `num_drawn` that a training draws, some are left out.

    Returns:
        the conversations, `None` if no record makes a pair, and what a person should know of them.

    Raises:
        DamagedFileError: a part of the round is missing or altered.
    """
    masks = list[np.ndarray]()
    for records in selected.read((*TEXT_COLUMNS, *EVIDENCE_COLUMNS)):
        changed = is_changed(records)
        masks.append(np.stack([changed, changed & is_evident(records, dpo)]))
    changed, kept = map(np.flatnonzero, np.concatenate(masks, axis=1))
    findings = _findings_about_pairs(len(selected), len(changed), len(kept), num_drawn, dpo)
    if not len(kept):
        return None, findings
    if len(kept) > num_drawn:
        rng = np.random.default_rng(derived_seed(run.config.seed, index, "pairs"))
        kept = np.sort(rng.choice(kept, num_drawn, replace=False))
    image_set = image_set_name(run.config, run.policies.schedule, index)
    pairs = chain.from_iterable(map(pairs_of, selected.read(TEXT_COLUMNS, kept)))
    samples = chain.from_iterable(replace(pair, image_id=routed(image_set, pair.image_id)).samples for pair in pairs)
    return write_samples(folder, samples, np.arange(2 * len(kept))), findings


def _findings_about_pairs(num_records: int, num_changed: int, num_pairs: int, num_drawn: int, dpo: Dpo) -> list[Finding]:
    sft = "dpo has no pair, and the candidate was trained by sft alone"
    if not num_changed:
        message = f"selected records, and in none has correction changed the answer: {sft}; loosen the filters, or set objective sft"
        return [Finding(kind="no_pairs", count=num_records, message=message)]
    if not num_pairs:
        message = (
            f"of {num_records} selected records have an answer that correction changed, and for none the evidence reaches {dpo.evidence}: "
            f"{sft}; lower it, or loosen the filters"
        )
        return [Finding(kind="no_pairs", count=num_changed, message=message)]
    if num_drawn <= _MAX_COPIES * num_pairs:
        return []
    message = (
        f"{num_pairs} pair(s) are drawn {num_drawn} times, {num_drawn / num_pairs:.0f} times each, and may be learned by heart: take more "
        "images, lower objective.dpo.pairs_per_step or training.num_steps"
    )
    return [Finding(kind="repeated_pairs", count=num_pairs, message=message)]


def repeated_records(mix: Mix, samples: Sequence[TrainingSample]) -> list[Finding]:
    """A finding if few generated records are repeated so often that a model may memorize them."""
    is_generated = np.flatnonzero(mix.source > 0)
    records, first, copies = np.unique(
        np.stack([mix.source, mix.row])[:, is_generated], axis=1, return_index=True, return_counts=True
    )  # fmt: skip
    num_records, num_copies = records.shape[1], len(is_generated)
    if num_copies <= _MAX_COPIES * num_records:
        return []
    message = (
        f"{num_records} generated record(s) make {num_copies} of {len(samples)} training samples, {num_copies / num_records:.0f} "
        "copies each, and may be learned by heart: take more images, loosen the filters, lower training.num_steps, or raise the seed share"
    )
    example = samples[int(is_generated[first[copies == copies.max()].min()])].origin
    return [Finding(kind="repeated_records", count=num_records, message=message, example=example)]


def num_without_original(rows: SelectedRows) -> int:
    """Records for which VIG gave no answer itself."""
    return len(rows) - (compute.sum(rows.table["has_original_answer"]).as_py() or 0)
