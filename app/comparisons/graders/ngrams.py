"""Similarities that count the words and the sequences of words which two texts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def rouge_n(wanted: Sequence[str], given: Sequence[str], length: int) -> float:
    """Return ROUGE-N's F measure (Lin, 2004, https://aclanthology.org/W04-1013)."""
    references, answers = _ngrams(wanted, length), _ngrams(given, length)
    return _f_measure((references & answers).total(), answers.total(), references.total())


def gleu(wanted: Sequence[str], given: Sequence[str]) -> float:
    """Return Google's sentence-level BLEU (Wu et al., 2016, https://arxiv.org/abs/1609.08144, section 7)."""
    lengths = range(1, 5)
    references = sum((_ngrams(wanted, length) for length in lengths), Counter[tuple[str, ...]]())
    answers = sum((_ngrams(given, length) for length in lengths), Counter[tuple[str, ...]]())
    most = max(references.total(), answers.total())
    return (references & answers).total() / most if most else 0.0


def _f_measure(common: int, given: int, wanted: int) -> float:
    return 2 * common / (given + wanted) if common else 0.0


def _ngrams(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(length)), strict=False))
