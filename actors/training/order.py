"""Which samples meet in which global batch: a function of the seed, the same whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MEGABATCH_BATCHES = 16
"""Batches that are sorted by length together: enough that padding is rare, few enough that batches stay mixed."""


def global_batches(lengths: Sequence[int], batch_size: int, num_batches: int, seed: int, *, length_grouping: bool) -> Iterator[list[int]]:
    """Indices of the samples of each global batch.

    Args:
        lengths: one number per sample, in any unit, to group by.
        batch_size: samples per batch.
        num_batches: how many batches to yield.
        seed: of the shuffles.
        length_grouping: make batches of like lengths inside runs of `MEGABATCH_BATCHES` batches.
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
    """Positions in a global batch that belong to a rank: contiguous, and as many for each."""
    share = len(batch) // world_size
    return range(rank * share, (rank + 1) * share)


def cut_by_tokens(widths: Sequence[int], max_tokens: int, min_parts: int = 1) -> list[list[int]]:
    """Rows in parts of like width, the narrow ones first, so that no part takes more than `max_tokens` when it is padded to its widest.

    Args:
        widths: of each row in tokens, padded as the row alone would be.
        max_tokens: of a part; a row that is wider is a part of its own.
        min_parts: parts are halved, those with most rows first, until there are so many; at most as many as there are rows.

    Returns:
        the rows' indices, every row in one part.
    """
    parts: list[list[int]] = []
    for row in sorted(range(len(widths)), key=lambda row: widths[row]):
        if parts and (len(parts[-1]) + 1) * widths[row] <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    while len(parts) < min(min_parts, len(widths)):
        most = max(range(len(parts)), key=lambda index: len(parts[index]))
        middle = len(parts[most]) // 2
        parts[most : most + 1] = [parts[most][:middle], parts[most][middle:]]
    return parts


def _passes(num_samples: int, seed: int) -> Iterator[int]:
    """Every sample once per pass, each pass in an order of its own, without end."""
    index = 0
    while True:
        yield from np.random.default_rng([seed, 0, index]).permutation(num_samples).tolist()
        index += 1
