# SPDX-License-Identifier: Apache-2.0
"""Exact top-k of page scores into lists of planned length, on a GPU: forced pages, ties to the lower page, ascending.

Scores are not negative, so their bit patterns order as they do: the k-th largest is found bit by bit, then one prefix
sum settles ties and one gives every kept page its place. Same scores, same list, whatever the order of execution.
"""

import torch
import triton
import triton.language as tl

from shplb.sparsity import PAGE_SIZE, SparsityRule

LEAST_WIDTH = 32


@triton.jit(do_not_specialize=["num_blocks", "max_pages", "req_stride"])
def _top_pages_kernel(
    scores_ptr, list_indptr_ptr, request_ptr, first_row_ptr, qo_len_ptr,
    req_to_token_ptr, req_stride, req_indices_ptr, out_ptr,
    num_blocks, max_pages, sink_pages, local_pages,
    HEADS: tl.constexpr, PAGE: tl.constexpr, WIDTH: tl.constexpr, PHYSICAL: tl.constexpr,
):  # fmt: skip
    block, list_head = tl.program_id(0), tl.program_id(1)
    at = list_head * num_blocks + block
    start = tl.load(list_indptr_ptr + at)
    count = tl.load(list_indptr_ptr + at + 1) - start
    if count == 0:
        return
    first = tl.load(first_row_ptr + block)
    visible = (first + tl.load(qo_len_ptr + block) + PAGE - 1) // PAGE
    first_local = tl.maximum(first // PAGE - local_pages, 0)
    sink_end = tl.minimum(sink_pages, first_local)
    page = tl.arange(0, WIDTH)
    score = tl.zeros((WIDTH,), tl.float32)
    for head in tl.static_range(HEADS):
        line = ((list_head * HEADS + head).to(tl.int64) * num_blocks + block) * max_pages
        score += tl.load(scores_ptr + line + page, mask=page < visible, other=0.0)
    # NaN fails the comparison, too: whatever the model computed, a list must hold valid pages.
    score = tl.where(score >= 0.0, score, 0.0)
    score = tl.where((page < sink_end) | (page >= first_local), float("inf"), score)
    bits = tl.where(page < visible, score.to(tl.int32, bitcast=True), -1)

    # Bit by bit from the highest; done as soon as exactly `count` pages reach the threshold.
    threshold, reached, step = 0, 0, 30
    while (step >= 0) & (reached != count):
        candidate = threshold | (1 << step)
        number = tl.sum((bits >= candidate).to(tl.int32), axis=0)
        if number >= count:
            threshold, reached = candidate, number
        step -= 1
    kept = bits >= threshold
    if reached != count:
        above = bits > threshold
        tie = bits == threshold
        missing = count - tl.sum(above.to(tl.int32), axis=0)
        kept = above | (tie & (tl.cumsum(tie.to(tl.int32), axis=0) <= missing))
    place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    value = page
    if PHYSICAL:
        row = req_to_token_ptr + tl.load(req_indices_ptr + tl.load(request_ptr + block)).to(tl.int64) * req_stride
        value = tl.load(row + page * PAGE, mask=kept, other=0) // PAGE
    tl.store(out_ptr + start + place, value, mask=kept)


def top_pages(
    scores: torch.Tensor,
    list_indptr: torch.Tensor,
    block_request: torch.Tensor,
    block_first_row: torch.Tensor,
    block_qo_len: torch.Tensor,
    req_to_token: torch.Tensor,
    req_indices: torch.Tensor,
    num_list_heads: int,
    rule: SparsityRule,
    out: torch.Tensor,
    *,
    physical: bool = True,
) -> None:
    """Write the kept pages of every list into ``out``, int32 ``[>= list_indptr[-1]]``.

    scores: float32 ``[num_qo_heads, num_blocks, max_pages]``; list_indptr: int32 ``[num_list_heads * num_blocks + 1]``,
    list ``j * num_blocks + b``, each at most as long as its block sees pages and empty or at least as long as its
    forced pages; num_list_heads: query heads, or KV heads whose query heads share lists (their scores are added).
    physical: pages of the pool (as FlashInfer reads them), else positions in the request.
    """
    num_qo_heads, num_blocks, max_pages = scores.shape
    width = max(int(triton.next_power_of_2(max_pages)), LEAST_WIDTH)
    _top_pages_kernel[(num_blocks, num_list_heads)](
        scores, list_indptr, block_request, block_first_row, block_qo_len,
        req_to_token, req_to_token.stride(0), req_indices, out,
        num_blocks, max_pages, rule.sink_pages, rule.local_pages,
        HEADS=num_qo_heads // num_list_heads, PAGE=PAGE_SIZE, WIDTH=width, PHYSICAL=physical,
        num_warps=min(max(width // 512, 1), 16),
    )  # fmt: skip
