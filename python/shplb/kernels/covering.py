# SPDX-License-Identifier: Apache-2.0
"""How many pages hold a share of the scores, list by list, on a GPU ("top_p"): what ``covering_counts`` defines.

No sort: as in ``top_pages``, bit patterns of scores that are not negative order as they do, so the least score that is
needed is found bit by bit. Its count is the list's length, and ``top_pages`` then fills the list.
"""

import torch
import triton
import triton.language as tl

from shplb.kernels.top_pages import LEAST_WIDTH
from shplb.sparsity import PAGE_SIZE, SparsityRule


@triton.jit(do_not_specialize=["num_blocks", "max_pages"])
def _covering_counts_kernel(
    scores_ptr, planned_indptr_ptr, first_row_ptr, qo_len_ptr, counts_ptr,
    num_blocks, max_pages, sink_pages, local_pages, floor_pages, dense_below, coverage,
    HEADS: tl.constexpr, PAGE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, list_head = tl.program_id(0), tl.program_id(1)
    at = list_head * num_blocks + block
    planned = tl.load(planned_indptr_ptr + at + 1) - tl.load(planned_indptr_ptr + at)
    first = tl.load(first_row_ptr + block)
    visible = (first + tl.load(qo_len_ptr + block) + PAGE - 1) // PAGE
    first_local = tl.maximum(first // PAGE - local_pages, 0)
    sink_end = tl.minimum(sink_pages, first_local)
    page = tl.arange(0, WIDTH)
    score = tl.zeros((WIDTH,), tl.float32)
    for head in tl.static_range(HEADS):
        line = ((list_head * HEADS + head).to(tl.int64) * num_blocks + block) * max_pages
        score += tl.load(scores_ptr + line + page, mask=page < visible, other=0.0)
    score = tl.where((score >= 0.0) & (score < float("inf")), score, 0.0)
    forced = (page < sink_end) | ((page >= first_local) & (page < visible))
    bits = tl.where(forced, 0x7F800000, score.to(tl.int32, bitcast=True))
    bits = tl.where(page < visible, bits, -1)
    wanted = tl.sum(score, axis=0) * coverage
    threshold, step = 0, 30
    while step >= 0:
        candidate = threshold | (1 << step)
        if tl.sum(tl.where(bits >= candidate, score, 0.0), axis=0) >= wanted:
            threshold = candidate
        step -= 1
    # Pages that tie at the threshold count until the share is reached.
    held = tl.sum(tl.where(bits > threshold, score, 0.0), axis=0)
    above = tl.sum((bits > threshold).to(tl.int32), axis=0)
    least = tl.sum(tl.where(bits == threshold, score, 0.0), axis=0)
    ties = tl.sum((bits == threshold).to(tl.int32), axis=0)
    each = least / tl.maximum(ties, 1).to(tl.float32)
    needed = tl.ceil((wanted - held) / tl.maximum(each, 1e-30)).to(tl.int32)
    count = above + tl.minimum(tl.maximum(needed, 0), ties)
    count = tl.maximum(count, tl.sum(forced.to(tl.int32), axis=0))
    count = tl.minimum(tl.maximum(count, floor_pages), visible)
    count = tl.where(visible * PAGE <= dense_below, visible, count)
    tl.store(counts_ptr + at, tl.where(planned > 0, count, 0))


def covering_counts(
    scores: torch.Tensor,
    planned_indptr: torch.Tensor,
    block_first_row: torch.Tensor,
    block_qo_len: torch.Tensor,
    num_list_heads: int,
    rule: SparsityRule,
) -> torch.Tensor:
    """int32 ``[num_list_heads * num_blocks]``: pages of every list, forced ones counted first; 0 where none is planned.

    Arguments as of ``top_pages.top_pages``; planned_indptr: the planned lists, of which only the empty ones matter.
    """
    num_qo_heads, num_blocks, max_pages = scores.shape
    counts = torch.empty(num_list_heads * num_blocks, dtype=torch.int32, device=scores.device)
    width = max(int(triton.next_power_of_2(max_pages)), LEAST_WIDTH)
    _covering_counts_kernel[(num_blocks, num_list_heads)](
        scores, planned_indptr, block_first_row, block_qo_len, counts,
        num_blocks, max_pages, rule.sink_pages, rule.local_pages, rule.floor_pages, rule.dense_below_tokens,
        rule.coverage,
        HEADS=num_qo_heads // num_list_heads, PAGE=PAGE_SIZE, WIDTH=width, num_warps=min(max(width // 512, 1), 16),
    )  # fmt: skip
    return counts
