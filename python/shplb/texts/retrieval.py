# SPDX-License-Identifier: Apache-2.0
"""Long prompts whose answer is one sentence somewhere in the text: what sparse attention loses first."""

import random
import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache
from itertools import accumulate

import msgspec

from shplb.texts.document import Document
from shplb.texts.encoding import Encoder, chat_text, encode_text
from shplb.texts.library import Split, source_text, sources_of
from shplb.texts.retrieval_facts import WORDING, Wording

# With four, SmolLM2-135M names the number of another fact in 3 of 5 prompts of 3000 tokens; with two, hardly ever.
_NUM_DISTRACTORS = 2


class FillerTooShortError(ValueError):
    """A retrieval prompt longer than all prose of its split."""


class RetrievalPrompt(msgspec.Struct, frozen=True):
    """A question about one fact in a long text.

    token_ids: the prompt in the model's chat template, up to and with the opening of its answer, ``[<= num_tokens]``.
    text: the user message alone, for chat APIs. answer: digits that a right reply contains. lead_in_token_ids: words of
    the reply before the digits; answer_token_ids: the digits (both for scoring without generating).
    depth: where the fact stands in the filler, counted in sentences: 0 is its start and 1 its end.
    """

    name: str
    token_ids: list[int]
    text: str
    answer: str
    lead_in_token_ids: list[int]
    answer_token_ids: list[int]
    depth: float


def retrieval_prompts(
    num_tokens: int,
    tokenizer: Encoder,
    *,
    count: int,
    seed: int,
    split: Split,
    depth: float | None = None,
) -> list[RetrievalPrompt]:
    """Return ``count`` prompts of at most, and nearly, ``num_tokens`` tokens each.

    Each fact names a place and a 7-digit number; two more facts with other keys stand elsewhere in the text. Depths
    are spread evenly over the text and jittered by the seed, unless ``depth`` in [0, 1] fixes them. The splits share
    no place, wording or filler. Raises ValueError for a bad argument or a ``num_tokens`` that is too small or larger
    than the filler.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}, expected a number from 0 to 1")
    sources_of(split, "prose")  # rejects an unknown split
    return [_prompt(num_tokens, tokenizer, i, count, seed, split, depth) for i in range(count)]


def retrieval_documents(
    num_tokens: int, encoder: Encoder, *, indexes: Iterable[int], seed: int, split: Split
) -> list[Document]:
    """Return prompts with their right answers as documents of exactly ``num_tokens`` tokens."""
    documents = []
    for index in indexes:
        # The tail: an end of sentence and as much filler as makes the length exact.
        prompt = _prompt(num_tokens - 24, encoder, index % 4, 4, seed, split, None)
        tail = encode_text(encoder, ".\n\n" + " ".join(_filler(split, random.Random(index))[:8]))
        token_ids = prompt.token_ids + prompt.lead_in_token_ids + prompt.answer_token_ids + tail
        documents.append(Document(name=prompt.name, domain="retrieval", token_ids=token_ids[:num_tokens]))
    return documents


def _prompt(
    num_tokens: int, encoder: Encoder, index: int, count: int, seed: int, split: Split, depth: float | None
) -> RetrievalPrompt:
    rng = random.Random(f"{split} {seed} {index}")
    wording = WORDING[split]
    keys = wording.keys(1 + _NUM_DISTRACTORS, rng)
    numbers = [str(rng.randint(1_000_000, 9_999_999)) for _ in keys]
    facts = [wording.fact.format(key=key, number=number) for key, number in zip(keys, numbers, strict=True)]
    jittered = (index + rng.random()) / count
    depths = [jittered if depth is None else depth, *(rng.random() for _ in keys[1:])]
    filler = _filler(split, rng)
    text, token_ids = _fit(num_tokens, encoder, filler, facts, depths, wording, keys[0])
    lead_in = wording.lead_in.format(key=keys[0])
    return RetrievalPrompt(
        name=f"retrieval_{split}_{seed}_{index}",
        token_ids=token_ids,
        text=text,
        answer=numbers[0],
        lead_in_token_ids=encode_text(encoder, lead_in),
        answer_token_ids=encode_text(encoder, " " + numbers[0]),
        depth=depths[0],
    )


def _filler(split: Split, rng: random.Random) -> list[str]:
    """Return sentences from a random place of one prose text on, then of the split's other prose, lines unfolded."""
    books = [_sentences(source.name) for source in sources_of(split, "prose")]
    first = rng.randrange(len(books))
    start = rng.randrange(len(books[first]))
    others = [sentence for book in books[first + 1 :] + books[:first] for sentence in book]
    return books[first][start:] + others + books[first][:start]


@cache
def _sentences(name: str) -> list[str]:
    paragraphs = [" ".join(paragraph.split()) for paragraph in source_text(name).split("\n\n")]
    # Headings and verse numbers are no sentences to put a fact between.
    return [s for p in paragraphs if len(p) > 80 for s in re.split(r"(?<=[a-z][.?!]) (?=[A-Z\"'])", p)]


def _fit(
    num_tokens: int,
    encoder: Encoder,
    filler: list[str],
    facts: list[str],
    depths: list[float],
    wording: Wording,
    key: str,
) -> tuple[str, list[int]]:
    """Return text and tokens of the prompt with the most filler words that keep it within ``num_tokens``."""
    # words_before[i]: words in the first i sentences.
    words_before = [0, *accumulate(len(sentence.split()) for sentence in filler)]

    def build(num_words: int) -> tuple[str, list[int]]:
        whole = bisect_right(words_before, num_words) - 1
        part = filler[whole].split()[: num_words - words_before[whole]] if whole < len(filler) else []
        sentences = filler[:whole] + ([" ".join(part)] if part else [])
        text = wording.prompt.format(
            text=_with_facts(sentences, facts, depths), question=wording.question.format(key=key)
        )
        return text, encode_text(encoder, chat_text(encoder, text))

    if len(build(0)[1]) > num_tokens:
        raise ValueError(
            f"{num_tokens} tokens are too few for a retrieval prompt with {len(facts)} facts, ask for 512 or more"
        )
    # Bounds that hold for nearly all text keep the search from tokenising a whole novel.
    low, high = 0, min(words_before[-1], num_tokens)
    if len(build(high)[1]) <= num_tokens:
        raise FillerTooShortError(f"{num_tokens} tokens are more than the filler text of a retrieval prompt holds")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(build(middle)[1]) <= num_tokens else (low, middle)
    return build(low)


def _with_facts(sentences: list[str], facts: list[str], depths: list[float]) -> str:
    positions = sorted(((round(depth * len(sentences)), fact) for depth, fact in zip(depths, facts, strict=True)))
    parts: list[str] = []
    done = 0
    for position, fact in positions:
        parts += [*sentences[done:position], fact]
        done = position
    return " ".join(parts + sentences[done:])
