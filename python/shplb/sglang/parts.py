# SPDX-License-Identifier: Apache-2.0
"""Requests of a prefill step, cut where the dense tails of their prompts begin.

The last tokens of a prompt hold the question, and their rows decide the first token of the reply: they are few, and
worth every page. That the last query rows should stay dense where others are sparse is from TriangleMix (arXiv
2507.21526). Tails run on the base backend, which splits their keys over the whole GPU.
"""

from typing import Any, NamedTuple

from shplb.sparsity import SparsityRule

INIT_TARGET = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"


class RequestIds(list[str]):
    """``ForwardBatch.rids``, with the tokens of every whole prompt, chunks to come included.

    SGLang's runners copy a batch field by field, so only a field's value comes through.
    """

    def __init__(self, rids: list[str], prompt_lens: list[int]) -> None:
        super().__init__(rids)
        self.prompt_lens = prompt_lens


class Parts(NamedTuple):
    """Stretches of new tokens, in batch order; one or two of each request.

    Attributes:
        request: index into the batch.
        prefix: tokens before the part, cached or of the request's first part.
        new: tokens of the part.
        stock: whether it belongs to the base backend whatever is predicted.
    """

    request: list[int]
    prefix: list[int]
    new: list[int]
    stock: list[bool]

    def chosen(self, indices: list[int]) -> "Parts":
        """Those parts alone; two of one request are one again."""
        found = Parts([], [], [], [])
        for index in indices:
            if found.request and found.request[-1] == self.request[index]:
                found.new[-1] += self.new[index]
            else:
                found._add(self.request[index], self.prefix[index], self.new[index], self.stock[index])
        return found

    @property
    def ends(self) -> list[int]:
        return [prefix + new for prefix, new in zip(self.prefix, self.new, strict=True)]

    def _add(self, request: int, prefix: int, new: int, stock: bool) -> None:
        self.request.append(request)
        self.prefix.append(prefix)
        self.new.append(new)
        self.stock.append(stock)


def cut_parts(prefix_lens: list[int], new_lens: list[int], prompt_lens: list[int], rule: SparsityRule) -> Parts:
    """Cut every request at the block where its tail begins.

    prefix_lens, new_lens: cached and new tokens of every request; prompt_lens: tokens of its prompt. What is behind the
    prompt was generated before a retraction, and belongs to the tail: it was dense the first time.
    """
    if rule.dense_tail_tokens == 0:
        return _uncut(prefix_lens, new_lens)
    parts = Parts([], [], [], [])
    for request, (prefix, new, prompt) in enumerate(zip(prefix_lens, new_lens, prompt_lens, strict=True)):
        end = prefix + new
        start = min(max(rule.tail_start(prompt), prefix), end)
        if start > prefix or start == end:
            parts._add(request, prefix, start - prefix, False)
        if start < end:
            parts._add(request, start, end - start, True)
    return parts


def _uncut(prefix_lens: list[int], new_lens: list[int]) -> Parts:
    return Parts(list(range(len(new_lens))), prefix_lens, new_lens, [False] * len(new_lens))


def note_prompt_lens(result: Any, cls: type, batch: Any, model_runner: Any) -> None:
    """AFTER hook of ``ForwardBatch.init_new``: only the scheduler's requests know how long their prompts are."""
    enabled = getattr(model_runner.server_args, "enable_shplb", False)
    if enabled and batch.forward_mode.is_extend() and batch.reqs:
        result.rids = RequestIds(result.rids, [len(request.origin_input_ids) for request in batch.reqs])


def parts_of(batch: Any, rule: SparsityRule) -> Parts:
    """Parts of an extend batch; without tails where it is not the scheduler's own."""
    prefix, new = list(batch.extend_prefix_lens_cpu), list(batch.extend_seq_lens_cpu)
    if isinstance(batch.rids, RequestIds):
        return cut_parts(prefix, new, batch.rids.prompt_lens, rule)
    return _uncut(prefix, new)
