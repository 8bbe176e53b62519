# SPDX-License-Identifier: Apache-2.0
"""RULER's two aggregation tasks (arXiv 2404.06654, section 3): common words of a list, frequent words of a code."""

import random
import string

from long_tasks.corpus import Corpus
from long_tasks.example import Message, Place

NUM_COMMON = 10
COMMON_REPEATS, UNCOMMON_REPEATS = 30, 3
#: Words and repeats of the worked example.
_EXAMPLE = (20, 3, 1)
NUM_FREQUENT = 3
_ALPHA, _ZETA_OF_ALPHA = 2.0, 1.6449340668482264
_CODE_LETTERS, _NUM_CODES = 6, 2000
_DOTS = "...."


def common_words_message(corpus: Corpus, size: int, rng: random.Random, place: Place) -> Message:
    """A numbered list: ten words 30 times each and ``size`` words 3 times each, in random order."""
    num_words, common, uncommon = _EXAMPLE
    drawn = rng.sample(corpus.words, min(2 * num_words + size, len(corpus.words)))
    example, solution, _ = _listed(drawn[:num_words], common, uncommon, rng)
    own = drawn[num_words : num_words + NUM_COMMON + size]
    text, prefix, answers = _listed(own, COMMON_REPEATS, UNCOMMON_REPEATS, rng)
    # The example's own answers come after its question, as they would in a dialogue.
    solved = f"{example}\n{solution} {_enumerated(drawn[:NUM_COMMON])}"
    return Message(f"{solved}\n\n{text}", prefix, answers)


def _listed(words: list[str], common: int, uncommon: int, rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    answers = words[:NUM_COMMON]
    listed = [*answers * common, *words[NUM_COMMON:] * uncommon]
    rng.shuffle(listed)
    text = (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        f"appear most often.\n{_enumerated(listed)}\n"
        f"Question: What are the {NUM_COMMON} most common words in the above list?"
    )
    prefix = f"Answer: The top {NUM_COMMON} words that appear most often in the list are:"
    return text, prefix, tuple(answers)


def _enumerated(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def frequent_words_message(size: int, rng: random.Random, place: Place) -> Message:
    """About ``size`` made-up words, the k-th ``size / (zeta(2) k^2)`` times; the first is dots, to be ignored."""
    codes: dict[str, None] = {}
    while len(codes) < _NUM_CODES:
        codes["".join(rng.choices(string.ascii_lowercase, k=_CODE_LETTERS))] = None
    ranked = [_DOTS, *codes]
    counts = [int(size * rank**-_ALPHA / _ZETA_OF_ALPHA) for rank in range(1, len(ranked) + 1)]
    text_words = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
    rng.shuffle(text_words)
    text = (
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        f"appeared coded words. {' '.join(text_words)}\nQuestion: Do not provide any explanation. Please ignore the "
        f"dots '{_DOTS}'. What are the three most frequently appeared words in the above coded text?"
    )
    prefix = "Answer: According to the coded text above, the three most frequently appeared words are:"
    return Message(text, prefix, tuple(ranked[1 : 1 + NUM_FREQUENT]))
