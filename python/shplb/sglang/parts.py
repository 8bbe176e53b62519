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
    """``ForwardBatch.rids``, with the tokens of every prompt that later chunks bring.

    SGLang's runners copy a batch field by field, so only a field's value comes through.
    """

    def __init__(self, rids: list[str], tokens_to_come: list[int]) -> None:
        super().__init__(rids)
        self.tokens_to_come = tokens_to_come


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


def cut_parts(prefix_lens: list[int], new_lens: list[int], to_come: list[int], rule: SparsityRule) -> Parts:
    """Cut every request at the block where its tail begins.

    prefix_lens, new_lens: cached and new tokens of every request; to_come: tokens of its prompt in later chunks.
    """
    parts = Parts([], [], [], [])
    for request, (prefix, new, later) in enumerate(zip(prefix_lens, new_lens, to_come, strict=True)):
        end = prefix + new
        start = min(max(rule.tail_start(end + later), prefix), end)
        if start > prefix or start == end:
            parts._add(request, prefix, start - prefix, False)
        if start < end:
            parts._add(request, start, end - start, True)
    return parts


def note_tokens_to_come(result: Any, cls: type, batch: Any, model_runner: Any) -> None:
    """AFTER hook of ``ForwardBatch.init_new``: only the scheduler's requests know how long their prompts are."""
    enabled = getattr(model_runner.server_args, "enable_shplb", False)
    if enabled and batch.forward_mode.is_extend() and batch.reqs:
        lens = zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True)
        # What was generated before a retraction is prefilled again as part of the prompt.
        whole = [(len(req.origin_input_ids) + len(req.output_ids), prefix + new) for req, prefix, new in lens]
        result.rids = RequestIds(result.rids, [max(length - end, 0) for length, end in whole])


def parts_of(batch: Any, rule: SparsityRule) -> Parts:
    """Parts of an extend batch; without tails where it is not the scheduler's own."""
    prefix, new = list(batch.extend_prefix_lens_cpu), list(batch.extend_seq_lens_cpu)
    if isinstance(batch.rids, RequestIds):
        return cut_parts(prefix, new, batch.rids.tokens_to_come, rule)
    return Parts(list(range(len(new))), prefix, new, [False] * len(new))
