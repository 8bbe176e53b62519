# SPDX-License-Identifier: Apache-2.0
"""All long-context tasks by name: examples of a number of tokens, and the score of a reply.

RULER (Hsieh et al. 2024, arXiv 2404.06654) has thirteen; they are written anew here from what the paper says, with
its wording of prompts. ``docs/quality.md`` lists how they differ from the original.
"""

import random
from collections.abc import Iterable
from functools import partial

import msgspec

from long_tasks.corpus import Corpus
from long_tasks.counting import common_words_message, frequent_words_message
from long_tasks.example import Example, Maker, Message, Place, TooShortError, at_all_places, fit
from long_tasks.key_values import key_value_message
from long_tasks.needles import NEEDLE_TASKS, needle_message
from long_tasks.questions import SHIPPED, Question, question_message, read_questions
from long_tasks.tracing import tracing_message
from shplb.texts.encoding import Encoder

QUESTION_TASKS = {"qa_1": 1, "qa_2": 2}
#: Tokens that a reply may have, RULER's; they count as part of the length.
NEW_TOKENS = dict.fromkeys(NEEDLE_TASKS, 128) | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
RULER = tuple(NEW_TOKENS)
NEW_TOKENS["key_values"] = 64
TASKS = tuple(NEW_TOKENS)


class Materials(msgspec.Struct, frozen=True):
    """What tasks are made of."""

    corpus: Corpus
    questions: list[Question]

    @classmethod
    def shipped(cls) -> "Materials":
        return cls(Corpus.shipped(), read_questions(SHIPPED))


def maker_of(task: str, materials: Materials) -> tuple[Maker, int]:
    """(messages by size, the least size); ValueError for an unknown task, or one that the materials can't make."""
    corpus = materials.corpus
    if task in NEEDLE_TASKS:
        return partial(needle_message, NEEDLE_TASKS[task], corpus), 50 if NEEDLE_TASKS[task].haystack == "prose" else 5
    if task in QUESTION_TASKS:
        questions = [each for each in materials.questions if len(each.paragraphs) == QUESTION_TASKS[task]]
        if not questions:
            raise ValueError(f"{task} needs questions with {QUESTION_TASKS[task]} paragraphs, and none was given.")
        return partial(question_message, questions, corpus), 1
    makers: dict[str, tuple[Maker, int]] = {
        "vt": (tracing_message, 10),
        "cwe": (partial(common_words_message, corpus), 10),
        "fwe": (frequent_words_message, 200),
        "key_values": (key_value_message, 2),
    }
    if task not in makers:
        raise ValueError(f"no task is called {task}; there are {', '.join(TASKS)}.")
    return makers[task]


def examples(
    task: str, num_tokens: int, encoder: Encoder, materials: Materials, *, count: int, seed: int
) -> list[Example]:
    """``count`` examples of at most, and nearly, ``num_tokens`` tokens, those of the reply included.

    Raises ValueError for an unknown task or count, TooShortError where the task needs more tokens.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1.")
    return at_all_places(lambda place: _example(task, num_tokens, encoder, materials, place, seed), count)


def _example(task: str, num_tokens: int, encoder: Encoder, materials: Materials, place: Place, seed: int) -> Example:
    make, least = maker_of(task, materials)

    def build(size: int) -> Message:
        # random.Random hashes a string with sha512: the same example in every process and at every size.
        return make(size, random.Random(f"{task} {seed} {place.index}"), place)

    new_tokens = NEW_TOKENS[task]
    try:
        message, token_ids = fit(build, encoder, num_tokens - new_tokens, least)
    except TooShortError as error:
        raise TooShortError(f"{task} at {num_tokens} tokens: {error}") from None
    return Example(task, message, token_ids, new_tokens)


def score(task: str, reply: str, answers: Iterable[str]) -> float:
    """Share of the answers that the reply contains, letter case aside; for questions, 1.0 where it contains any."""
    reply = reply.lower()
    found = [answer.lower() in reply for answer in answers]
    return float(any(found)) if task in QUESTION_TASKS else sum(found) / len(found)
