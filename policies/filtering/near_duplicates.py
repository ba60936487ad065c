"""Near duplicates among many texts: MinHash finds candidates (Broder 1997), the exact similarity of their shingles decides.

Texts that have the same key in a band of their MinHash are in one bucket, and those of a bucket are candidates. Keys are sorted, and large
buckets cost no more than small ones, so that the work is near n log n: exact duplicates are collapsed first, a text that repeats another
one leaves the search at once, a text is compared with at most `MOST_NEIGHBOURS` others of a bucket on each side, and sketches rule out
most pairs before their shingles are compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import numpy as np
from rensa.rensa import RMinHash

from policies.checks import check_at_least, check_at_most
from policies.metrics import normalise

_NUM_HASHES, _SEED = 128, 1
"""Of MinHash. Both are part of the keys that are stored with records: changing them needs another name of their column."""
_MISSED = 1e-3
"""Largest share of pairs of exactly the threshold's similarity that share no band."""
MOST_NEIGHBOURS = 32
"""Texts of a bucket that a text is compared with, on each side."""
SKETCH_WORDS = 4
"""Of 64 bits each, in a sketch of a set of shingles."""
_TEXTS_AT_ONCE = 4096
_PAIRS_AT_ONCE = 1 << 14
_HASH_BITS = 48
"""Of a shingle's hash: 16 bits remain to number the pairs that are compared at once."""
_TEXT_BYTES, _BAND_BYTES = 8, 4
_WORD = re.compile(r"\w+")
_ASCII_WORDS = "".join(one if _WORD.match(one) else " " for one in map(chr, range(128)))
"""Translates ASCII so that its words are what white space separates, twice as fast as the expression finds them."""


@dataclass(frozen=True)
class TextSimilarity:
    """When two texts are near duplicates.

    Args:
        threshold: Jaccard similarity (0.5..1) of their sets of word shingles.
        shingle_words: words per shingle.
    """

    threshold: float = 0.9
    shingle_words: int = 3

    def __post_init__(self) -> None:
        check_at_least("threshold", self.threshold, 0.5)
        check_at_most("threshold", self.threshold, 1.0)
        check_at_least("shingle_words", self.shingle_words, 1)

    @cached_property
    def bands(self) -> tuple[int, int]:
        """Number of bands and hashes per band: the longest bands that miss at most `_MISSED` of the pairs at the threshold."""
        shapes = [(_NUM_HASHES // rows, rows) for rows in range(1, _NUM_HASHES + 1)]
        return next(shape for shape in reversed(shapes) if (1 - self.threshold ** shape[1]) ** shape[0] <= _MISSED)

    def shingles(self, text: str) -> list[str]:
        """The runs of `shingle_words` words, in lower case; all words if there are fewer, and the text itself if it has no word."""
        text, num = text.lower(), self.shingle_words
        words = (text.translate(_ASCII_WORDS).split() if text.isascii() else _WORD.findall(text)) or [text]
        if len(words) <= num:
            return [" ".join(words)]
        return list(map(" ".join, zip(*(words[start:] for start in range(num)), strict=False)))

    def keys(self, texts: Iterable[str]) -> np.ndarray:
        """A key for each band of each text, uint32 [texts, bands]."""
        remaining, found = iter(texts), [np.zeros((0, self.bands[0]), dtype=np.uint32)]
        while piece := list(islice(remaining, _TEXTS_AT_ONCE)):
            found.append(self._keys(piece))
        return np.concatenate(found)

    def _keys(self, texts: Sequence[str]) -> np.ndarray:
        num_bands, num_rows = self.bands
        hashes = RMinHash.digest_matrix_from_token_sets([self.shingles(text) for text in texts], _NUM_HASHES, _SEED).to_rows()
        rows = np.array(hashes, dtype=np.uint64)[:, : num_bands * num_rows].reshape(len(texts), num_bands, num_rows)
        return ((rows * _odd_numbers(num_rows)).sum(axis=2, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32)

    def sets(self, texts: Iterable[str]) -> ShingleSets:
        """The shingles of texts, to compare them exactly."""
        hashed = RMinHash.hash_token_sets([self.shingles(text) for text in texts])
        lengths = np.array([len(one) for one in hashed], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(hashed), np.uint64, int(lengths.sum())) >> np.uint64(64 - _HASH_BITS)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        order = np.lexsort((flat, rows))
        flat, rows = flat[order], rows[order]
        is_new = np.ones(len(flat), dtype=bool)
        is_new[1:] = (flat[1:] != flat[:-1]) | (rows[1:] != rows[:-1])
        sizes = np.bincount(rows[is_new], minlength=len(lengths))
        return ShingleSets(flat[is_new], sizes, _sketches(flat[is_new], sizes))


class ShingleSets:
    """Sets of shingles, as their hashes."""

    def __init__(self, hashes: np.ndarray, sizes: np.ndarray, sketches: np.ndarray) -> None:
        """Use arrays as they are.

        Args:
            hashes: of all sets, one after the other, ascending in each, uint64.
            sizes: number of hashes of each set, int64 [sets].
            sketches: see `_sketches`.
        """
        self.hashes, self.sizes, self.sketches = hashes, sizes, sketches
        self._starts = np.cumsum(sizes) - sizes

    def are_similar(self, first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
        """Whether the Jaccard similarity of each pair of sets reaches the threshold, bool [pairs]."""
        found = np.zeros(len(first), dtype=bool)
        for start in range(0, len(first), _PAIRS_AT_ONCE):
            end = start + _PAIRS_AT_ONCE
            open_pairs = start + np.flatnonzero(self._may_be_similar(first[start:end], second[start:end], threshold))
            found[open_pairs] = self._similarity(first[open_pairs], second[open_pairs]) >= threshold
        return found

    def _may_be_similar(self, first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
        """False for pairs whose sketches show that they are not similar: two sets of similarity t differ in (1 - t) / (1 + t) of the
        sum of their sizes."""
        least_differing = np.bitwise_count(self.sketches[first] ^ self.sketches[second]).sum(axis=1)
        return least_differing <= (self.sizes[first] + self.sizes[second]) * (1 - threshold) / (1 + threshold) + 1e-9

    def _similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        both = np.concatenate([self._of_pairs(first), self._of_pairs(second)])
        both.sort(kind="stable")  # merges two sorted runs
        shared = np.bincount((both[1:][both[1:] == both[:-1]] >> np.uint64(_HASH_BITS)).astype(np.int64), minlength=len(first))
        return shared / (self.sizes[first] + self.sizes[second] - shared)

    def _of_pairs(self, members: np.ndarray) -> np.ndarray:
        """The hashes of sets, each with the number of its pair in the high bits."""
        sizes = self.sizes[members]
        pairs = np.repeat(np.arange(len(members)), sizes)
        places = np.arange(len(pairs)) + np.repeat(self._starts[members] - (np.cumsum(sizes) - sizes), sizes)
        return self.hashes[places] | (pairs.astype(np.uint64) << np.uint64(_HASH_BITS))


@dataclass(frozen=True)
class TextKeys:
    """What a search knows of texts before it reads them."""

    texts: np.ndarray
    """A hash of each normalised text, uint64 [texts]."""
    bands: np.ndarray
    """uint32 [texts, bands]."""

    @classmethod
    def of(cls, similarity: TextSimilarity, pairs: Iterable[tuple[str, str]]) -> TextKeys:
        """The keys of questions with their answers. Pairs that are equal after `normalise` have equal hashes."""
        pairs = list(pairs)
        texts = hashes_of(f"{normalise(question)}\n{normalise(answer)}" for question, answer in pairs)
        return cls(texts, similarity.keys(f"{question} {answer}" for question, answer in pairs))

    @classmethod
    def unpacked(cls, packed: np.ndarray) -> TextKeys:
        """From what `packed` gave."""
        texts, bands = packed[:, :_TEXT_BYTES], packed[:, _TEXT_BYTES:]
        return cls(np.ascontiguousarray(texts).view("<u8")[:, 0], np.ascontiguousarray(bands).view("<u4"))

    @property
    def packed(self) -> np.ndarray:
        """The keys as bytes, uint8 [texts, bytes]."""
        texts, bands = self.texts.astype("<u8")[:, None], np.ascontiguousarray(self.bands.astype("<u4"))
        return np.concatenate([texts.view(np.uint8), bands.view(np.uint8)], axis=1)


def packed_bytes(similarity: TextSimilarity) -> int:
    """Bytes per text of `TextKeys.packed`."""
    return _TEXT_BYTES + _BAND_BYTES * similarity.bands[0]


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """A hash of each text, uint64: among 10 million texts, two that differ have the same one in 3 of a million cases."""
    return np.frombuffer(
        b"".join(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest() for text in texts), dtype="<u8"
    )


class DuplicateSearch:
    """Finds texts that repeat an earlier one of the same scope. `exact` comes first, then `near`.

    Of the texts that are kept, none repeats another one, up to what the bands miss. Every other text repeats an earlier one, which may
    itself not be kept.
    """

    def __init__(self, keys: TextKeys, scopes: np.ndarray, num_known: int = 0, *, among_new: bool = True) -> None:
        """Nothing is compared yet.

        Args:
            keys: of the texts, in the order of precedence.
            scopes: a number for each text, uint64; only texts with the same one are compared.
            num_known: the first texts, which stay in any case.
            among_new: whether texts behind them are compared with each other, too.
        """
        self._keys, self._scopes, self._num_known, self._among_new = keys, scopes, num_known, among_new
        self._num = len(keys.texts)
        self.repeats = np.full(self._num, self._num)
        """The earlier text that each one repeats, int64; their number where there is none."""
        self._num_large_buckets = np.zeros(self._num, dtype=np.int16)

    @property
    def is_kept(self) -> np.ndarray:
        """Whether no earlier text was found that a text repeats."""
        return self.repeats == self._num

    @property
    def num_partly_compared(self) -> int:
        """Kept texts behind the known ones that shared most of their keys with more texts than they were compared with. A near duplicate
        of theirs may have been missed."""
        is_large = 2 * self._num_large_buckets > self._keys.bands.shape[1]
        return int((is_large & self.is_kept)[self._num_known :].sum())

    def exact(self) -> np.ndarray:
        """The texts that equal an earlier one, ascending."""
        rows, buckets = self._shared(self._keys.texts)
        first = rows[np.searchsorted(buckets, buckets)]
        repeated = (rows > first) & self._may_repeat(first, rows)
        self.repeats[rows[repeated]] = first[repeated]
        return np.sort(rows[repeated])

    def candidates(self) -> np.ndarray:
        """The texts whose shingles `near` reads, bool [texts]."""
        found = np.zeros(self._num, dtype=bool)
        for band in self._keys.bands.T:
            found[self._shared(band)[0]] = True
        return found

    def near(self, sets: ShingleSets, threshold: float) -> np.ndarray:
        """The texts that are near duplicates of an earlier one, ascending. `sets` holds the shingles of all `candidates`."""
        were_kept = self.is_kept
        bands = self._keys.bands
        for band in range(bands.shape[1]):
            rows, buckets = self._shared(bands[:, band])
            order = np.lexsort((bands[rows, band - 1], buckets))  # texts of a large bucket that share another key are neighbours
            self._compare(rows[order], buckets, sets, threshold)
        return np.flatnonzero(were_kept & ~self.is_kept)

    def _compare(self, rows: np.ndarray, buckets: np.ndarray, sets: ShingleSets, threshold: float) -> None:
        """Compare texts with their neighbours in the same bucket, the nearest ones first."""
        sizes = np.bincount(buckets)
        self._num_large_buckets[rows[sizes[buckets] > MOST_NEIGHBOURS + 1]] += 1
        for distance in range(1, min(MOST_NEIGHBOURS, int(sizes.max(initial=1)) - 1) + 1):
            is_pair = buckets[distance:] == buckets[:-distance]
            one, other = rows[distance:][is_pair], rows[:-distance][is_pair]
            earlier, later = np.minimum(one, other), np.maximum(one, other)
            open_pairs = self._may_repeat(earlier, later) & (self.repeats[earlier] == self._num) & (self.repeats[later] == self._num)
            earlier, later = earlier[open_pairs], later[open_pairs]
            similar = sets.are_similar(earlier, later, threshold)
            np.minimum.at(self.repeats, later[similar], earlier[similar])

    def _may_repeat(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        comparable = (later >= self._num_known) & (self._among_new | (earlier < self._num_known))
        return comparable & (self._scopes[earlier] == self._scopes[later])

    def _shared(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The kept texts that share key and scope with a text that they can be compared with, and the numbers of their buckets,
        ascending; texts of a bucket are in order."""
        rows = np.flatnonzero(self.is_kept)
        mixed = _mixed(keys[rows], self._scopes[rows])
        order = np.argsort(mixed, kind="stable")
        rows, mixed = rows[order], mixed[order]
        starts = np.flatnonzero(np.concatenate([[True], mixed[1:] != mixed[:-1]])) if len(rows) else rows
        ends = np.append(starts[1:], len(rows)) if len(rows) else rows
        useful = (ends - starts > 1) & (rows[ends - 1] >= self._num_known)
        if not self._among_new:
            useful &= rows[starts] < self._num_known
        sizes = (ends - starts)[useful]
        return rows[np.repeat(useful, ends - starts)], np.repeat(np.arange(len(sizes)), sizes)


def _sketches(hashes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Odd sketches of sets (Mitzenmacher, Pagh and Pham 2014), uint64 [sets, words]: every hash flips a bit. Elements of two sets that are
    equal cancel each other, so that two sketches differ in no more bits than their sets in elements."""
    starts = np.cumsum(sizes) - sizes
    bits = np.uint64(1) << (hashes & np.uint64(63))
    words = (hashes >> np.uint64(6)) % np.uint64(SKETCH_WORDS)
    columns = [np.bitwise_xor.reduceat(np.where(words == word, bits, np.uint64(0)), starts) for word in range(SKETCH_WORDS)]
    return np.stack(columns, axis=1)


def _mixed(keys: np.ndarray, scopes: np.ndarray) -> np.ndarray:
    """One number for a key in a scope, uint64."""
    one, other = _odd_numbers(2)
    return keys.astype(np.uint64) * one + scopes * other


def _odd_numbers(num: int) -> np.ndarray:
    """Odd factors that spread what they multiply over 64 bits, uint64. They do not depend on the version of a random generator."""
    return hashes_of(map(str, range(num))) | np.uint64(1)
