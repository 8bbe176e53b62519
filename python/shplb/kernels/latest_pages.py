# SPDX-License-Identifier: Apache-2.0
"""Lists of the sink pages and the latest ones, on a GPU ("a_shape"): what ``selection.latest_pages`` defines."""

import torch
import triton
import triton.language as tl

from shplb.sparsity import PAGE_SIZE, SparsityRule

_WIDTH = 1024


@triton.jit(do_not_specialize=["num_blocks", "req_stride"])
def _latest_pages_kernel(
    list_indptr_ptr, request_ptr, first_row_ptr, qo_len_ptr,
    req_to_token_ptr, req_stride, req_indices_ptr, out_ptr, num_blocks, sink_pages, local_pages,
    PAGE: tl.constexpr, WIDTH: tl.constexpr, PHYSICAL: tl.constexpr,
):  # fmt: skip
    block, list_head = tl.program_id(0), tl.program_id(1)
    at = list_head * num_blocks + block
    start = tl.load(list_indptr_ptr + at)
    count = tl.load(list_indptr_ptr + at + 1) - start
    first = tl.load(first_row_ptr + block)
    visible = (first + tl.load(qo_len_ptr + block) + PAGE - 1) // PAGE
    sink_end = tl.minimum(sink_pages, tl.maximum(first // PAGE - local_pages, 0))
    row = req_to_token_ptr + tl.load(req_indices_ptr + tl.load(request_ptr + block)).to(tl.int64) * req_stride
    for begin in range(0, count, WIDTH):
        place = begin + tl.arange(0, WIDTH)
        page = tl.where(place < sink_end, place, visible - count + place)
        value = page
        if PHYSICAL:
            value = tl.load(row + page * PAGE, mask=place < count, other=0) // PAGE
        tl.store(out_ptr + start + place, value, mask=place < count)


def latest_pages(
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
    """Write every list into ``out``; arguments as of ``top_pages.top_pages``, without scores."""
    num_blocks = len(block_request)
    _latest_pages_kernel[(num_blocks, num_list_heads)](
        list_indptr, block_request, block_first_row, block_qo_len,
        req_to_token, req_to_token.stride(0), req_indices, out, num_blocks, rule.sink_pages, rule.local_pages,
        PAGE=PAGE_SIZE, WIDTH=_WIDTH, PHYSICAL=physical, num_warps=4,
    )  # fmt: skip
