# SPDX-License-Identifier: Apache-2.0
"""Greedy answers against a reference: where they part, and how close the two tokens were there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from real_server import Answer


@dataclass(frozen=True)
class Parting:
    """The first step at which an answer differs; ``gap``: nats from the best token to the one chosen instead, as the
    reference has them, infinite when it is not among the reference's best ones."""

    index: int
    step: int
    gap: float

    def __str__(self) -> str:
        return f"answer {self.index} parts at token {self.step}, {self.gap:.4f} nats below the best"


def partings(reference: Sequence[Answer], answers: Sequence[Answer]) -> list[Parting]:
    """One for every answer that differs; the shorter of two answers decides how far they are compared."""
    found = []
    for index, (right, answer) in enumerate(zip(reference, answers, strict=True)):
        pairs = zip(right.tokens, answer.tokens, strict=False)
        step = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        if step is not None:
            top = right.top[step]
            found.append(Parting(index, step, max(top.values()) - top.get(answer.tokens[step], -math.inf)))
    return found


def check_near_ties(found: list[Parting], bound: float) -> None:
    wrong = [str(parting) for parting in found if not parting.gap <= bound]
    assert not wrong, "\n".join(wrong)
