# SPDX-License-Identifier: Apache-2.0
"""Pooled keys and queries of one layer on a GPU: means over runs of ``stride`` tokens, cut at absolute multiples.

The same numbers as ``scores.pool_tokens`` makes, rounded to float16, whose eleven bits lose less than bfloat16's
eight where large common components cancel in the softmax. All keys of a request are pooled again in every step: one
read of K per chunk, next to nothing beside attention, and no summary can be stale when a page is written by decoding
in a captured graph, reused or retracted.
"""

import torch
import triton
import triton.language as tl

from shplb.sparsity import PAGE_SIZE

_LARGEST = 65504.0  # of float16
_PAGES = 4  # per program: 16 runs at stride 16


@triton.jit
def _to_half(sums, counts, LARGEST: tl.constexpr):
    mean = sums / tl.maximum(counts, 1).to(tl.float32)[:, None]
    return tl.minimum(tl.maximum(mean, -LARGEST), LARGEST).to(tl.float16)


# Both kernels add tokens up one by one, each thread for its own runs and dims: no thread waits for another, and all
# loads are on their way at once.
@triton.jit(do_not_specialize=["total_runs", "req_stride"])
def _pool_keys_kernel(
    k_ptr, k_slot_stride, k_head_stride,
    req_to_token_ptr, req_stride, req_indices_ptr, seq_lens_ptr, page_starts_ptr,
    out_ptr, total_runs,
    PAGES: tl.constexpr, PAGE: tl.constexpr, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    request, head = tl.program_id(1), tl.program_id(2)
    page_start = tl.load(page_starts_ptr + request)
    seq_len = tl.load(seq_lens_ptr + request).to(tl.int32)
    first_page = tl.program_id(0) * PAGES
    if (page_start < 0) | (first_page * PAGE >= seq_len):
        return
    per_page: tl.constexpr = PAGE // STRIDE
    run = first_page * per_page + tl.arange(0, PAGES * per_page)
    real = run * STRIDE < seq_len
    row = req_to_token_ptr + tl.load(req_indices_ptr + request).to(tl.int64) * req_stride
    slot = tl.load(row + run * STRIDE, mask=real, other=0).to(tl.int64)
    dim = tl.arange(0, HEAD_DIM)
    base = k_ptr + slot[:, None] * k_slot_stride + head.to(tl.int64) * k_head_stride + dim[None, :]
    sums = tl.zeros((PAGES * per_page, HEAD_DIM), tl.float32)
    for token in tl.static_range(STRIDE):
        valid = run * STRIDE + token < seq_len
        sums += tl.load(base + token * k_slot_stride, mask=valid[:, None], other=0.0).to(tl.float32)
    pooled = _to_half(sums, tl.minimum(seq_len - run * STRIDE, STRIDE), LARGEST)
    target = head.to(tl.int64) * total_runs + page_start * per_page + run
    tl.store(out_ptr + target[:, None] * HEAD_DIM + dim[None, :], pooled, mask=real[:, None])


@triton.jit
def _pool_queries_kernel(
    q_ptr, q_row_stride, q_head_stride,
    first_row_ptr, qo_indptr_ptr, qo_len_ptr,
    out_ptr, num_heads,
    RUNS: tl.constexpr, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(first_row_ptr + block)
    end = first + tl.load(qo_len_ptr + block)
    row = tl.load(qo_indptr_ptr + block).to(tl.int64) - first
    begin = (first // STRIDE + tl.arange(0, RUNS)) * STRIDE
    dim = tl.arange(0, HEAD_DIM)
    base = q_ptr + (row + begin)[:, None] * q_row_stride + head * q_head_stride + dim[None, :]
    sums = tl.zeros((RUNS, HEAD_DIM), tl.float32)
    for token in tl.static_range(STRIDE):
        valid = (begin + token >= first) & (begin + token < end)
        sums += tl.load(base + token * q_row_stride, mask=valid[:, None], other=0.0).to(tl.float32)
    pooled = _to_half(sums, tl.minimum(begin + STRIDE, end) - tl.maximum(begin, first), LARGEST)
    run = (block.to(tl.int64) * num_heads + head) * RUNS + tl.arange(0, RUNS)
    tl.store(out_ptr + run[:, None] * HEAD_DIM + dim[None, :], pooled)


def runs_of_block(query_block: int, stride: int) -> int:
    """Pooled queries kept per block: a power of two, as Triton's shapes must be; the surplus is never read."""
    return int(triton.next_power_of_2(query_block // stride))


def pool_keys(
    k_pool: torch.Tensor,
    req_to_token: torch.Tensor,
    req_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    page_starts: torch.Tensor,
    total_pages: int,
    max_pages: int,
    stride: int,
) -> torch.Tensor:
    """Pooled keys of the requests that take part, page after page.

    k_pool: ``[pool_tokens, num_kv_heads, head_dim]``, last axis dense; req_to_token: int32 ``[.., max_tokens]``, pool
    slot of every position, where a page's tokens follow each other; req_indices, seq_lens: int ``[num_requests]``,
    row of req_to_token and tokens; page_starts: int32 ``[num_requests]``, where a request's pages begin in the result,
    -1: not pooled; total_pages: of all pooled requests; max_pages: of the longest.
    Returns float16 ``[num_kv_heads, total_pages * 64 / stride, head_dim]``; runs past a request's end are undefined.
    """
    num_kv_heads, head_dim = k_pool.shape[1:]
    out = torch.empty((num_kv_heads, total_pages * PAGE_SIZE // stride, head_dim), dtype=torch.float16,
                      device=k_pool.device)  # fmt: skip
    _pool_keys_kernel[(-(-max_pages // _PAGES), len(seq_lens), num_kv_heads)](
        k_pool, k_pool.stride(0), k_pool.stride(1),
        req_to_token, req_to_token.stride(0), req_indices, seq_lens, page_starts,
        out, out.shape[1],
        PAGES=_PAGES, PAGE=PAGE_SIZE, STRIDE=stride, HEAD_DIM=head_dim, LARGEST=_LARGEST, num_warps=4,
    )  # fmt: skip
    return out


def pool_queries(
    q: torch.Tensor,
    block_first_row: torch.Tensor,
    block_qo_indptr: torch.Tensor,
    block_qo_len: torch.Tensor,
    query_block: int,
    stride: int,
) -> torch.Tensor:
    """Pooled queries of every block: float16 ``[num_blocks, num_qo_heads, runs_of_block, head_dim]``.

    q: ``[num_rows, num_qo_heads, head_dim]``, last axis dense. Per block (int32): absolute position of its first row,
    that row's place in q, rows.
    """
    num_heads, head_dim = q.shape[1:]
    num_blocks, runs = len(block_first_row), runs_of_block(query_block, stride)
    out = torch.empty((num_blocks, num_heads, runs, head_dim), dtype=torch.float16, device=q.device)
    _pool_queries_kernel[(num_blocks, num_heads)](
        q, q.stride(0), q.stride(1),
        block_first_row, block_qo_indptr, block_qo_len,
        out, num_heads,
        RUNS=runs, STRIDE=stride, HEAD_DIM=head_dim, LARGEST=_LARGEST, num_warps=2 if runs <= 8 else 4,
    )  # fmt: skip
    return out
