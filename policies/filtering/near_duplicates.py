"""Near duplicates: MinHash finds the candidates (Broder 1997), the exact similarity of the shingles decides."""

from __future__ import annotations

from collections.abc import Hashable

from policies.records import Reason

_BANDS, _ROWS = 42, 3
"""Of the locality-sensitive hash: it misses 4 in 1,000 pairs of similarity 0.5 and 2 in 100 million of similarity 0.7."""


class KeptTexts:
    """The texts kept so far, by their questions and shingles."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH  # here because it takes more than a second to import

        self._threshold = threshold
        self._new_hash = MinHash(num_perm=_BANDS * _ROWS)
        self._index = MinHashLSH(threshold, num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
        self._shingles: dict[Hashable, frozenset[str]] = {}

    def enter(self, question: str, shingles: frozenset[str]) -> Reason | None:
        """Keep a text and return None, or return the reason if it is a duplicate of a kept one."""
        if question in self._shingles:
            return Reason.EXACT_DUPLICATE
        minhash = self._new_hash.copy()
        minhash.update_batch([shingle.encode() for shingle in shingles])
        others = (self._shingles[index] for index in self._index.query(minhash))
        if any(len(shingles & other) >= self._threshold * len(shingles | other) for other in others):
            return Reason.NEAR_DUPLICATE
        self._index.insert(question, minhash)
        self._shingles[question] = shingles
        return None
