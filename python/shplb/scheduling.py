# SPDX-License-Identifier: Apache-2.0
"""Which prompts SGLang prefills together: a small model of its scheduler, for simulation.

Modelled after ``Scheduler.get_next_batch_to_run`` and ``PrefillAdder`` of SGLang 0.5.15.post1 with default options:
first come, first served; a prefill step goes before any decode step; a step takes up to ``chunk_tokens`` new tokens,
counted in whole pages, from as many requests as fit; a prompt that doesn't fit is cut at a page and goes on first in
the next step.

Left out: the size of the KV pool and of the running batch (nothing is evicted, retracted or refused), prefix hits other
than those the trace names, mixed and dynamic chunks, priorities, and the reserve that the overlap scheduler keeps.
"""

import sys
from collections import deque
from dataclasses import dataclass

from shplb.sparsity import PAGE_SIZE

MAX_PREFILL_TOKENS = 16384  # SGLang's default --max-prefill-tokens


@dataclass
class Prompt:
    """A prompt on its way through prefill; tokens. ``done`` counts cached tokens too."""

    index: int
    done: int
    total: int


@dataclass(frozen=True)
class PrefillBatch:
    """One prefill step: cached and new tokens of each request, and which requests get their first token."""

    prefix_lens: list[int]
    new_lens: list[int]
    finished: list[int]


class PrefillQueue:
    """Waiting prompts, and the one whose prefill is under way."""

    def __init__(self, chunk_tokens: int) -> None:
        """chunk_tokens: SGLang's ``--chunked-prefill-size``, a multiple of the page; 0 or less turns chunks off."""
        if chunk_tokens > 0 and chunk_tokens % PAGE_SIZE:
            raise ValueError(
                f"--chunked-prefill-size is {chunk_tokens}, expected a multiple of {PAGE_SIZE} tokens, or -1 for whole "
                "prompts."
            )
        self._chunks = chunk_tokens > 0
        self._chunk_tokens = chunk_tokens if self._chunks else sys.maxsize
        self._waiting: deque[Prompt] = deque()
        self._chunked: Prompt | None = None

    def add(self, index: int, prompt_tokens: int, prefix_tokens: int) -> None:
        """Queue a request. Of the cached tokens whole pages count, and the last prompt token is always computed."""
        cached = min(prefix_tokens, prompt_tokens - 1) // PAGE_SIZE * PAGE_SIZE
        self._waiting.append(Prompt(index, cached, prompt_tokens))

    def next_batch(self) -> PrefillBatch | None:
        """Take the next prefill step off the queue; None where no prompt waits."""
        batch = PrefillBatch([], [], [])
        room, input_room = self._chunk_tokens, MAX_PREFILL_TOKENS
        if self._chunked is not None:
            prompt, self._chunked = self._chunked, None
            taken = self._take(batch, prompt, min(prompt.total - prompt.done, room))
            room, input_room = room - taken, input_room - taken
        while self._waiting:
            prompt = self._waiting[0]
            new = self._fitting(prompt.total - prompt.done, room, input_room, first=not batch.new_lens)
            if new == 0:
                break
            self._waiting.popleft()
            taken = self._take(batch, prompt, new)
            room, input_room = room - taken, input_room - taken
            if room <= 0 or input_room <= 0:
                break
        return batch if batch.new_lens else None

    def _fitting(self, wanted: int, room: int, input_room: int, *, first: bool) -> int:
        """New tokens of the next waiting prompt that this step takes; 0 ends the step."""
        if self._chunks:
            return min(wanted, room)  # room is whole pages, so a cut falls on a page
        return wanted if first or _pages(wanted) < input_room else 0

    def _take(self, batch: PrefillBatch, prompt: Prompt, new: int) -> int:
        """Put ``new`` tokens of the prompt into the batch; returns what they count, whole pages."""
        batch.prefix_lens.append(prompt.done)
        batch.new_lens.append(new)
        prompt.done += new
        if prompt.done == prompt.total:
            batch.finished.append(prompt.index)
        else:
            self._chunked = prompt
        return _pages(new)


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE) * PAGE_SIZE
