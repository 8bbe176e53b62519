# SPDX-License-Identifier: Apache-2.0
"""Everything that is sent to each server at one length; the same for all of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from long_tasks import TASKS, Example, Materials, TooShortError, examples
from long_tasks.conversation import Conversation, conversations

from shplb.quality.measurement import WINDOW
from shplb.texts import Document, held_out_documents, user_documents
from shplb.texts.encoding import Encoder

TEXT_DOMAINS = ("prose", "code", "manual", "dialogue")
MULTI_TURN = "multi_turn"
#: All names that --tasks may hold.
NAMES = (*TASKS, MULTI_TURN)


class Amounts(msgspec.Struct, frozen=True):
    """How many of each: prompts per task, conversations (as prompts of ``multi_turn``), texts, and timed prompts."""

    prompts: int
    texts: int
    timed: int
    seed: int


class Workload(msgspec.Struct, frozen=True):
    """What one length holds. ``left_out``: one sentence for every task that needs more tokens."""

    tokens: int
    examples: dict[str, list[Example]]
    conversations: list[Conversation]
    texts: list[Document]
    timed: list[list[int]]
    left_out: list[str]


def make_workload(
    tokens: int,
    tasks: Sequence[str],
    amounts: Amounts,
    encoder: Encoder,
    materials: Materials,
    user_texts: Path | None = None,
    on_task: Callable[[str], None] = lambda name: None,
) -> Workload:
    """All prompts of ``tokens`` tokens, replies included, and texts, the user's where a path is given.

    Texts are a window of NLL shorter, since SGLang wants room for a reply where they would fill the model's context.

    Raises ValueError for an unknown task, and where no text is so long.
    """
    found: dict[str, list[Example]] = {}
    left_out = []
    for task in tasks:
        on_task(task)
        if task == MULTI_TURN:
            continue
        try:
            found[task] = examples(task, tokens, encoder, materials, count=amounts.prompts, seed=amounts.seed)
        except TooShortError as error:
            left_out.append(str(error))
    talks = []
    if MULTI_TURN in tasks:
        talks = conversations(tokens, encoder, materials.corpus, count=amounts.prompts, seed=amounts.seed)
    if user_texts is not None:
        texts = user_documents(user_texts, tokens - WINDOW, encoder)[: amounts.texts]
    else:
        texts = held_out_documents(
            tokens - WINDOW, encoder, domains=TEXT_DOMAINS, limit=amounts.texts, seed=amounts.seed
        )
    # Only their length matters; one more is for warming up.
    timed = [_rotated(texts[i % len(texts)].token_ids, 101 * (i + 1)) for i in range(amounts.timed + 1)]
    return Workload(tokens, found, talks, texts, timed if amounts.timed else [], left_out)


def _rotated(token_ids: list[int], by: int) -> list[int]:
    by %= len(token_ids)
    return token_ids[by:] + token_ids[:by]
