# SPDX-License-Identifier: Apache-2.0
"""Training sequences: half real text, half long-context tasks with their answers, at mixed lengths.

Nothing here is what ``bench_quality.py`` asks: the prose of tasks comes from the calibration split, keys and places are
drawn anew for every sequence, and questions and conversations are left out. The wording of the other tasks is the
same, so scores on them say how well this model uses its context, not how well it reads instructions.
"""

import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from long_tasks import NEW_TOKENS, QUESTION_TASKS, Corpus, Example, Materials, TooShortError, examples

from shplb.texts import user_texts
from shplb.texts.encoding import Encoder, encode_text
from shplb.texts.library import source_text, sources

TRAINED_TASKS = tuple(task for task in NEW_TOKENS if task not in QUESTION_TASKS)
IGNORED = -100  # label of a token without a loss, torch's own
_SHORTEST = 4096
# Modules of the standard library that are held-out text, and files that are no text to learn from.
_HELD_OUT_MODULES = ("inspect.py", "pathlib.py", "pathlib", "statistics.py")
_SKIPPED_PARTS = ("site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings")


class Labelled(msgspec.Struct, frozen=True):
    """token_ids, labels: ``[num_tokens]``; a label is the token itself, or -100 where it is not learnt."""

    token_ids: list[int]
    labels: list[int]


def training_texts(path: Path | None) -> list[str]:
    """The user's texts, or the calibration split and the sources of this Python's standard library."""
    if path is not None:
        return [text for _, text in user_texts(path)]
    shipped = [source_text(source.name) for source in sources() if source.split == "calibration"]
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = [
        file
        for file in sorted(root.rglob("*.py"))
        if not set(file.relative_to(root).parts) & {*_SKIPPED_PARTS, *_HELD_OUT_MODULES}
    ]
    return shipped + [file.read_text(encoding="utf-8", errors="ignore") for file in modules]


class Stream:
    """All training text as one row of tokens, and tasks made on demand; the same sequence for the same index."""

    def __init__(self, texts: Sequence[str], encoder: Encoder, eos: int, longest: int, seed: int) -> None:
        """ValueError where the texts hold fewer tokens than the longest sequence."""
        self.encoder, self.eos, self.longest, self.seed = encoder, eos, longest, seed
        parts = [np.array([*encode_text(encoder, text), eos], dtype=np.int32) for text in texts]
        self.tokens = np.concatenate(parts)
        if len(self.tokens) <= longest:
            raise ValueError(f"the texts hold {len(self.tokens)} tokens, expected more than {longest}; give more text.")
        self.materials = Materials(Corpus.shipped("calibration"), [])

    def lengths(self) -> list[int]:
        """Lengths that are drawn from: the longest, its half and so on down to 4096."""
        found = [self.longest]
        while found[-1] // 2 >= _SHORTEST:
            found.append(found[-1] // 2)
        return found

    def sequence(self, index: int) -> Labelled:
        """Text at even indices, a task at odd ones."""
        rng = random.Random(f"train {self.seed} {index}")
        num_tokens = rng.choice(self.lengths())
        if index % 2 == 0:
            start = rng.randrange(len(self.tokens) - num_tokens)
            token_ids = self.tokens[start : start + num_tokens].tolist()
            return Labelled(token_ids, token_ids)
        while True:
            task = rng.choice(TRAINED_TASKS)
            try:
                made = examples(task, num_tokens, self.encoder, self.materials, count=1, seed=rng.getrandbits(48))
            except TooShortError:
                continue
            return self._answered(made[0])

    def _answered(self, example: Example) -> Labelled:
        answers = example.message.answers
        if example.task == "cwe":
            reply = " " + " ".join(f"{number}. {word}" for number, word in enumerate(answers, start=1))
        else:
            reply = " " + (" " if example.task == "vt" else ", ").join(answers) + "."
        answer = [*encode_text(self.encoder, reply), self.eos]
        ignored = [IGNORED] * len(example.token_ids)
        return Labelled(example.token_ids + answer, ignored + answer)
