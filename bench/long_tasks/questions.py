# SPDX-License-Identifier: Apache-2.0
"""RULER's question-answering tasks (arXiv 2404.06654, section 3): paragraphs that answer, hidden among others.

The questions that come along were written for the shipped held-out texts, since SQuAD and HotpotQA don't ship; a user
can give others in a .jsonl file.
"""

import json
import random
from pathlib import Path

import msgspec

from long_tasks.corpus import Corpus
from long_tasks.example import Message, Place

SHIPPED = Path(__file__).parent / "questions.jsonl"
_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question, the answers that count, any of them, and the paragraphs (one, or two for two hops) that give it."""

    question: str
    answers: list[str]
    paragraphs: list[str]


def read_questions(path: Path) -> list[Question]:
    """One question a line; ValueError in one sentence, naming file and line, for anything else."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            each = msgspec.json.decode(line, type=Question)
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"{path} line {number} is no question ({error}), expected "
                + json.dumps({"question": "...", "answers": ["..."], "paragraphs": ["..."]})
            ) from None
        if not each.answers or not 1 <= len(each.paragraphs) <= 2 or not all([*each.answers, *each.paragraphs]):
            raise ValueError(f"{path} line {number} has no answer, or not one or two paragraphs; give them.")
        if not any(answer.lower() in "\n".join(each.paragraphs).lower() for answer in each.answers):
            raise ValueError(f"{path} line {number} has none of its answers in its paragraphs; give those that do.")
        found.append(each)
    return found


def question_message(questions: list[Question], corpus: Corpus, size: int, rng: random.Random, place: Place) -> Message:
    """A question whose paragraphs stand among ``size`` others that hold no answer; the first at the depth of ``place``.

    Examples take the questions in turn; more examples than questions meet other paragraphs at other depths.
    """
    asked = questions[place.index % len(questions)]
    depths = [place.depth(rng), *(rng.random() for _ in asked.paragraphs[1:])]
    own = {" ".join(paragraph.split()) for paragraph in asked.paragraphs}
    others = [
        paragraph
        for paragraph in rng.sample(corpus.paragraphs, len(corpus.paragraphs))
        if paragraph not in own and not any(answer.lower() in paragraph.lower() for answer in asked.answers)
    ]
    # Short corpora come round again, as the essays of RULER do.
    units = [others[i % len(others)] for i in range(size)]
    for paragraph, depth in zip(asked.paragraphs, depths, strict=True):
        units.insert(round(depth * len(units)), paragraph)
    documents = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(units, start=1))
    text = (
        f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{documents}\n\n{_INSTRUCTION}\n\n"
        f"Question: {asked.question}"
    )
    return Message(text, "Answer:", tuple(asked.answers), tuple(asked.paragraphs))
