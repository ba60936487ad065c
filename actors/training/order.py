"""Assigns samples to global batches as a function of the seed, independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MEGABATCH_BATCHES = 16
"""Batches that are sorted by length together: enough to keep padding low, few enough to keep batches mixed."""


def global_batches(
    lengths: Sequence[int] | np.ndarray, batch_size: int, num_batches: int, seed: int, *, length_grouping: bool
) -> Iterator[list[int]]:
    """Indices of the samples of each global batch.

    Args:
        lengths: length of each sample, in any unit.
        batch_size: samples per batch.
        num_batches: number of batches to yield.
        seed: seed of the shuffles.
        length_grouping: batch samples of similar length within runs of `MEGABATCH_BATCHES` batches.
    """
    stream = _passes(len(lengths), seed)
    for first in range(0, num_batches, MEGABATCH_BATCHES):
        count = min(MEGABATCH_BATCHES, num_batches - first)
        drawn = [next(stream) for _ in range(count * batch_size)]
        if length_grouping:
            drawn.sort(key=lambda index: lengths[index])
        batches = [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
        order = np.random.default_rng([seed, 1, first]).permutation(count) if length_grouping else range(count)
        yield from (batches[position] for position in order)


def rank_share(batch: Sequence[int], rank: int, world_size: int) -> range:
    """Positions in a global batch that belong to a rank: contiguous, equally many per rank."""
    share = len(batch) // world_size
    return range(rank * share, (rank + 1) * share)


def cut_by_tokens(widths: Sequence[int], max_tokens: int, min_parts: int = 1) -> list[list[int]]:
    """Split rows into parts of similar width, narrow ones first; padded to its widest row, no part exceeds `max_tokens`.

    Args:
        widths: width of each row in tokens, padded as if alone.
        max_tokens: limit per part; a wider row gets a part of its own.
        min_parts: parts are halved, those with most rows first, until there are at least this many, or one per row.

    Returns:
        the rows' indices; every row is in exactly one part.
    """
    parts: list[list[int]] = []
    for row in sorted(range(len(widths)), key=lambda row: widths[row]):
        if parts and (len(parts[-1]) + 1) * widths[row] <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return _split_to(parts, min(min_parts, len(widths)))


def pack_by_tokens(lengths: Sequence[int], max_tokens: int, min_parts: int = 1) -> list[list[int]]:
    """Pack rows into parts whose lengths sum to at most `max_tokens` (first fit decreasing, Johnson 1973); arguments and result are
    those of `cut_by_tokens`."""
    parts: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        part = next((part for part, free in enumerate(room) if lengths[row] <= free), len(parts))
        if part == len(parts):
            parts.append([])
            room.append(max_tokens)
        parts[part].append(row)
        room[part] -= lengths[row]
    return _split_to(parts, min(min_parts, len(lengths)))


def _split_to(parts: list[list[int]], min_parts: int) -> list[list[int]]:
    """Halve parts, those with most rows first, until there are at least `min_parts`."""
    while len(parts) < min_parts:
        most = max(range(len(parts)), key=lambda index: len(parts[index]))
        middle = len(parts[most]) // 2
        parts[most : most + 1] = [parts[most][:middle], parts[most][middle:]]
    return parts


def _passes(num_samples: int, seed: int) -> Iterator[int]:
    """Endless passes over the samples, each pass in an order of its own."""
    index = 0
    while True:
        yield from map(int, np.random.default_rng([seed, 0, index]).permutation(num_samples))
        index += 1
