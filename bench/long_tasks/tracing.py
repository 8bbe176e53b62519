# SPDX-License-Identifier: Apache-2.0
"""Variable tracking (RULER, arXiv 2404.06654, section 3): a chain of assignments in noise, after a worked example."""

import random
import string

from long_tasks.corpus import NOISE, with_inserted
from long_tasks.example import Message, Place

NUM_HOPS = 4
_EXAMPLE_UNITS = 10


def tracing_message(size: int, rng: random.Random, place: Place) -> Message:
    """One chain, a value and ``NUM_HOPS`` copies of it, in ``size`` sentences of noise.

    The first assignment stands at the depth of ``place`` in what leaves room for the others after it.
    """
    names = _names(2 * (NUM_HOPS + 1), rng)
    example, _ = _chain(_EXAMPLE_UNITS, names[: NUM_HOPS + 1], rng, Place(0, 2), solved=True)
    text, marks = _chain(size, names[NUM_HOPS + 1 :], rng, place, solved=False)
    body, prefix = text.rsplit("\n", 1)
    return Message(f"{example}\n\n{body}", prefix, tuple(names[NUM_HOPS + 1 :]), marks)


def _chain(
    size: int, names: list[str], rng: random.Random, place: Place, *, solved: bool
) -> tuple[str, tuple[str, ...]]:
    value = str(rng.randint(10_000, 99_999))
    sources = [value, *(f"VAR {name}" for name in names)]
    assignments = [f"VAR {name} = {source}" for name, source in zip(names, sources, strict=False)]
    first = place.depth(rng) * 0.8
    depths = sorted(first + (1.0 - first) * rng.random() for _ in assignments[1:])
    units = [NOISE[i % len(NOISE)] for i in range(size)]
    context = "\n".join(with_inserted(units, assignments, [first, *depths]))
    text = (
        f"Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
        f"Question: Find all variables that are assigned the value {value} in the text above.\n"
        f"Answer: According to the chain(s) of variable assignment in the text above, {len(names)} variables are "
        f"assigned the value {value}, they are:"
    )
    return (f"{text} {' '.join(names)}" if solved else text), tuple(assignments)


def _names(count: int, rng: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    return list(found)
