# SPDX-License-Identifier: Apache-2.0
"""What a generator makes, and how it is fitted to a number of tokens."""

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from shplb.texts.encoding import Encoder, chat_text, encode_text

# Every evaluation tokenises the whole prompt, and length is nearly linear in size.
_MOST_TRIES = 12
_SLACK = 0.01


class TooShortError(ValueError):
    """A task that does not fit into so few tokens; the message is one sentence."""


class Message(msgspec.Struct, frozen=True):
    """A question and its answers.

    text: what the user says. prefix: how the reply is made to begin. answers: strings that a right reply contains.
    marks: pieces of ``text`` that hold the answers (needles, assignments, paragraphs), for checks.
    """

    text: str
    prefix: str
    answers: tuple[str, ...]
    marks: tuple[str, ...] = ()


class Example(msgspec.Struct, frozen=True):
    """One prompt of a task.

    token_ids: the message in the model's chat template with the prefix after it. new_tokens: how many a reply may have.
    """

    task: str
    message: Message
    token_ids: list[int]
    new_tokens: int


class Place(msgspec.Struct, frozen=True):
    """Which example of how many this is, so that depths can be spread over them; ``index`` in [0, count)."""

    index: int
    count: int

    def depth(self, rng: random.Random) -> float:
        """A depth in [0, 1): jittered inside this example's share of the text."""
        return (self.index + rng.random()) / self.count


def at_all_places[Made](make: Callable[[Place], Made], count: int) -> list[Made]:
    """What ``make`` makes of each of ``count`` places, in order. In threads: tokenizers, which take most of the time,
    let others run.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(make, (Place(index, count) for index in range(count))))


#: A message of a size; always the same one for equal arguments, longer for larger sizes.
Maker = Callable[[int, random.Random, Place], Message]


def tokens_of(encoder: Encoder, message: Message) -> list[int]:
    return encode_text(encoder, chat_text(encoder, message.text) + message.prefix)


def fit(build: Callable[[int], Message], encoder: Encoder, limit: int, least: int) -> tuple[Message, list[int]]:
    """The message of the largest size, or of one that leaves at most 1 % free, within ``limit`` tokens.

    Raises TooShortError where even ``least`` units don't fit.
    """
    found = build(least)
    best = found, tokens_of(encoder, found)
    low, low_tokens = least, len(best[1])
    if low_tokens > limit:
        raise TooShortError(f"{limit} tokens are too few: the smallest prompt of the task has {low_tokens}.")
    high, slope = None, 0.0
    for _ in range(_MOST_TRIES):
        if limit - low_tokens <= _SLACK * limit or (high is not None and high - low <= 1):
            break
        guess = low + int((limit - low_tokens) / slope) if slope else 2 * low + 8
        guess = max(low + 1, guess) if high is None else min(max(low + 1, guess), high - 1)
        found = build(guess)
        token_ids = tokens_of(encoder, found)
        if len(token_ids) != low_tokens:
            slope = abs(len(token_ids) - low_tokens) / (guess - low)
        if len(token_ids) <= limit:
            low, low_tokens, best = guess, len(token_ids), (found, token_ids)
        else:
            high = guess
    return best
