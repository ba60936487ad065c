"""How much of a caption its references share: BLEU, ROUGE-L and CIDEr-D, over words that are already split.

| metric  | paper                                 | over several captions                                             |
|---------|---------------------------------------|-------------------------------------------------------------------|
| BLEU-n  | Papineni et al. 2002, P02-1040        | counts are summed before they are divided; one brevity penalty    |
| ROUGE-L | Lin 2004, W04-1013                    | mean of the F-measures                                            |
| CIDEr-D | Vedantam et al. 2015, arXiv 1411.5726 | mean; rare n-grams, by the references of all images, weigh more   |

Values equal those of the public code (salaniz/pycocoevalcap, tylin/coco-caption), with its choices where the papers leave one:
the brevity penalty takes the reference whose length is closest (of two, the shorter); ROUGE-L takes its precision and its recall each
from the reference that gives the highest, and weighs recall by beta = 1.2; CIDEr-D clips counts, and measures lengths in bigrams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

MAX_ORDER = 4
"""Longest n-gram, in words."""
_BETA = 1.2
_SIGMA = 6.0
"""Standard deviation of CIDEr-D's penalty on lengths."""
_CIDER_SCALE = 10.0
_SMALL, _TINY = 1e-9, 1e-15
"""Added by the public code below and above the fraction bar of BLEU, so that it never divides by zero."""

Words = Sequence[str]
Ngram = tuple[str, ...]


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus, 0..1: the geometric mean of the clipped n-gram precisions, times the brevity penalty.

    Args:
        candidates: a caption for each image.
        references: the captions to compare each with, one or more.
    """
    correct, guessed = [0] * MAX_ORDER, [0] * MAX_ORDER
    length = reference_length = 0
    for candidate, against in zip(candidates, references, strict=True):
        length += len(candidate)
        reference_length += min((abs(len(one) - len(candidate)), len(one)) for one in against)[1]
        most: Counter[Ngram] = Counter()
        for one in against:
            most |= _ngrams(one)
        for ngram, count in (_ngrams(candidate) & most).items():
            correct[len(ngram) - 1] += count
        for order in range(MAX_ORDER):
            guessed[order] += max(0, len(candidate) - order)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    found, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (correct[order] + _TINY) / (guessed[order] + _SMALL)
        found.append(penalty * product ** (1 / (order + 1)))
    return found


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of one caption, 0..1; 0 for a caption without words."""
    common = [longest_common(candidate, one) for one in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(length / len(one) for length, one in zip(common, references, strict=True) if length)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common(one: Words, other: Words) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for index, against in enumerate(other, 1):
            above = lengths[index]
            lengths[index] = before + 1 if word == against else max(above, lengths[index - 1])
            before = above
    return lengths[-1]


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption, 0..10: the mean similarity, over references and orders, of n-gram counts weighted by rarity.

    With one image every n-gram is in all images, so that all weights and the result are 0.

    Args:
        candidates: a caption for each image.
        references: the captions to compare each with, one or more. In how many images an n-gram occurs is counted over all of them.
    """
    counted = [[_ngrams(one) for one in against] for against in references]
    num_images: Counter[Ngram] = Counter(ngram for against in counted for ngram in set().union(*against))
    weights = {ngram: math.log(len(references) / num) for ngram, num in num_images.items()}
    unseen = math.log(len(references)) if references else 0.0
    return [
        _CIDER_SCALE * sum(_similarity(_ngrams(candidate), one, weights, unseen) for one in against) / len(against)
        for candidate, against in zip(candidates, counted, strict=True)
    ]


def _ngrams(words: Words) -> Counter[Ngram]:
    """How often each n-gram of up to `MAX_ORDER` words occurs."""
    return Counter(tuple(words[start : start + order]) for order in range(1, MAX_ORDER + 1) for start in range(len(words) - order + 1))


def _similarity(said: Counter[Ngram], reference: Counter[Ngram], weights: Mapping[Ngram, float], unseen: float) -> float:
    """CIDEr-D of one caption with one reference, 0..1: equations 1 to 4 of the paper, with clipping and the penalty on lengths."""
    products, norms, reference_norms = [0.0] * MAX_ORDER, [0.0] * MAX_ORDER, [0.0] * MAX_ORDER
    for ngram, count in said.items():
        order, weight = len(ngram) - 1, weights.get(ngram, unseen)
        products[order] += min(count, reference[ngram]) * reference[ngram] * weight**2
        norms[order] += (count * weight) ** 2
    for ngram, count in reference.items():
        reference_norms[len(ngram) - 1] += (count * weights[ngram]) ** 2
    difference = _num_bigrams(said) - _num_bigrams(reference)
    cosines = (p / math.sqrt(n * m) for p, n, m in zip(products, norms, reference_norms, strict=True) if n and m)
    return math.exp(-(difference**2) / (2 * _SIGMA**2)) * sum(cosines) / MAX_ORDER


def _num_bigrams(ngrams: Counter[Ngram]) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
