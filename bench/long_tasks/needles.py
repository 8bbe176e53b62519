# SPDX-License-Identifier: Apache-2.0
"""The eight needle-in-a-haystack tasks of RULER (arXiv 2404.06654, section 3 and appendix B)."""

import random
import uuid
from typing import Literal

import msgspec

from long_tasks.corpus import NOISE, Corpus, with_inserted
from long_tasks.example import Message, Place


class NeedleTask(msgspec.Struct, frozen=True):
    """What is hidden where.

    haystack: ``noise`` repeats five sentences, ``prose`` is text, ``needles`` is nothing but other needles. keys,
    values: kinds of strings. num_keys: needles with different keys, of which ``num_queries`` are asked for; num_values:
    needles per key.
    """

    haystack: Literal["noise", "prose", "needles"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("prose"),
    "niah_single_3": NeedleTask("prose", values="uuids"),
    "niah_multikey_1": NeedleTask("prose", num_keys=4),
    "niah_multikey_2": NeedleTask("needles"),
    "niah_multikey_3": NeedleTask("needles", keys="uuids", values="uuids"),
    "niah_multivalue": NeedleTask("prose", num_values=4),
    "niah_multiquery": NeedleTask("prose", num_keys=4, num_queries=4),
}


def needle_message(task: NeedleTask, corpus: Corpus, size: int, rng: random.Random, place: Place) -> Message:
    """A haystack of ``size`` noise sentences, words of prose or other needles; the first needle asked for stands at the
    depth of ``place``.
    """
    distractors = size if task.haystack == "needles" else 0
    keys = _strings(task.keys, task.num_keys, corpus, rng)
    values = [_strings(task.values, task.num_values, corpus, rng) for _ in keys]
    needles = [_needle(task, key, value) for key, own in zip(keys, values, strict=True) for value in own]
    depths = [place.depth(rng), *(rng.random() for _ in needles[1:])]
    if task.haystack == "needles":
        # Drawn last and left out where equal, so that the needle is the same at every size.
        others = [key for key in _strings(task.keys, distractors + 8, corpus, rng) if key not in keys][:distractors]
        units = [_needle(task, key, _strings(task.values, 1, corpus, rng)[0]) for key in others]
    elif task.haystack == "noise":
        units = [NOISE[i % len(NOISE)] for i in range(size)]
    else:
        units = corpus.prose(size, rng)
    separator = " " if task.haystack == "prose" else "\n"
    context = separator.join(with_inserted(units, needles, depths))
    answers = tuple(value for own in values[: task.num_queries] for value in own)
    asked = needles[: task.num_queries * task.num_values]
    return _ask(task, context, keys[: task.num_queries], answers, tuple(asked))


def _needle(task: NeedleTask, key: str, value: str) -> str:
    return f"One of the special magic {task.values} for {key} is: {value}."


def _ask(task: NeedleTask, context: str, keys: list[str], answers: tuple[str, ...], marks: tuple[str, ...]) -> Message:
    what, many = task.values, len(answers) > 1
    query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
    kind = what if many else what.removesuffix("s")
    about = f"the special magic {kind} for {query} mentioned in the provided text"
    opening = f"Some special magic {kind} are" if many else f"A special magic {kind} is"
    text = (
        f"{opening} hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} "
        f"afterwards.\n{context}\nWhat {'are all' if many else 'is'} {about}?"
    )
    return Message(text, f"{about[0].upper()}{about[1:]} {'are' if many else 'is'}", answers, marks)


def _strings(kind: str, count: int, corpus: Corpus, rng: random.Random) -> list[str]:
    """``count`` different strings: word-word, numbers of seven digits, or UUIDs."""
    if kind == "words":
        return corpus.keys(count, rng)
    if kind == "uuids":
        return [draw_uuid(rng) for _ in range(count)]
    return [str(number) for number in rng.sample(range(1_000_000, 10_000_000), count)]


def draw_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
