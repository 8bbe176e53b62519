# SPDX-License-Identifier: Apache-2.0
"""Long-context tasks with answers that can be checked as strings: RULER's thirteen, and key-value retrieval."""

from long_tasks.corpus import Corpus
from long_tasks.example import Example, Message, Place, TooShortError
from long_tasks.questions import read_questions
from long_tasks.tasks import NEW_TOKENS, QUESTION_TASKS, RULER, TASKS, Materials, examples, score

__all__ = [
    "NEW_TOKENS",
    "QUESTION_TASKS",
    "RULER",
    "TASKS",
    "Corpus",
    "Example",
    "Materials",
    "Message",
    "Place",
    "TooShortError",
    "examples",
    "read_questions",
    "score",
]
