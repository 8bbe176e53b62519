# SPDX-License-Identifier: Apache-2.0
"""Any score of ``kernels.scores`` on a GPU: products in slabs by cuBLAS, then one kernel for softmax and page sums.

For scores that are compared with the default, which has kernels of its own (``pooling``, ``page_mass``). As XAttention
does it, too, products are written once and read twice; slabs of whole query blocks bound that memory and skip most of
the future.
"""

import math

import torch
import triton
import triton.language as tl

from shplb.kernels.scores import key_tokens, key_vectors, logit_scale, query_vectors, row_tokens
from shplb.sparsity import PAGE_SIZE, SparsityRule

_SLAB_BYTES = 256 << 20
_TILE = 8192  # logits per program and turn


@triton.jit(do_not_specialize=["rows", "keys", "first_vector", "first_block", "out_blocks", "max_pages"])
def _row_mass_kernel(
    logits_ptr, rows, keys, row_start_ptr, first_vector, out_ptr, first_block, out_blocks, max_pages, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PER_PAGE: tl.constexpr, ROW_TOKENS: tl.constexpr,
    KEY_TOKENS: tl.constexpr,
):  # fmt: skip
    """One program per (block of the slab, head): logits [heads, rows, keys] to out [heads, out_blocks, max_pages]."""
    block, head = tl.program_id(0), tl.program_id(1)
    begin = tl.load(row_start_ptr + block)
    count = tl.load(row_start_ptr + block + 1) - begin
    row = tl.arange(0, ROWS)
    real = row < count
    position = tl.where(real, (first_vector + begin + row) * ROW_TOKENS, -1)
    base = logits_ptr + (head.to(tl.int64) * rows + begin + row)[:, None] * keys
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    end = tl.minimum(tl.max(position, axis=0) // KEY_TOKENS + 1, keys)
    for start in range(0, end, KEYS):
        key = start + tl.arange(0, KEYS)
        seen = real[:, None] & (key[None, :] * KEY_TOKENS <= position[:, None]) & (key < keys)[None, :]
        s = tl.load(base + key[None, :], mask=seen, other=float("-inf")).to(tl.float32) * scale
        new = tl.maximum(largest, tl.max(s, axis=1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(largest - safe) + tl.sum(tl.exp2(s - safe[:, None]), axis=1)
        largest = new
    safe = tl.where(largest == float("-inf"), 0.0, largest)
    share = 1.0 / (tl.maximum(total, 1e-30) * tl.maximum(count, 1).to(tl.float32))
    line = out_ptr + (head.to(tl.int64) * out_blocks + first_block + block) * max_pages
    for start in range(0, end, KEYS):
        key = start + tl.arange(0, KEYS)
        seen = real[:, None] & (key[None, :] * KEY_TOKENS <= position[:, None]) & (key < keys)[None, :]
        s = tl.load(base + key[None, :], mask=seen, other=float("-inf")).to(tl.float32) * scale
        weight = tl.sum(tl.exp2(s - safe[:, None]) * share[:, None], axis=0)
        mass = tl.sum(tl.reshape(weight, (KEYS // PER_PAGE, PER_PAGE)), axis=1)
        page = start // PER_PAGE + tl.arange(0, KEYS // PER_PAGE)
        tl.store(line + page, mass, mask=page < max_pages)


def slab_mass(
    q: torch.Tensor, k: torch.Tensor, prefix: int, sm_scale: float, rule: SparsityRule, out: torch.Tensor,
    first_block: int,
) -> None:  # fmt: skip
    """Scores of one request's query blocks into its part of ``out``; pages that a block does not see stay undefined.

    q: [num_new_tokens, num_qo_heads, head_dim], the first at position ``prefix``; k: [prefix + num_new_tokens,
    num_kv_heads, head_dim]; out: float32 [num_qo_heads, num_blocks, max_pages], where the request's blocks begin at
    ``first_block``.
    """
    end, stride, unit, size = prefix + len(q), row_tokens(rule), key_tokens(rule), rule.query_block
    rows = query_vectors(q, prefix, rule).to(q.dtype)
    keys = key_vectors(k, rule).to(q.dtype).transpose(1, 2)  # [num_kv_heads, dim, num_keys]
    first_vector, heads = prefix // stride, len(rows)
    per_slab = max(_SLAB_BYTES // (heads * keys.shape[2] * q.element_size() * (size // stride)), 1)
    first, last = prefix // size, (end - 1) // size + 1

    # First vector of a block; blocks are whole runs but for the request's ends.
    def edge(block: int) -> int:
        return max(-(-min(block * size, end) // stride), first_vector) - first_vector

    for block in range(first, last, per_slab):
        until = min(block + per_slab, last)
        seen = (min(until * size, end) - 1) // unit + 1
        part = rows[:, edge(block) : edge(until)].reshape(len(keys), -1, rows.shape[2])
        logits = torch.bmm(part, keys[:, :, :seen]).view(heads, -1, seen)
        edges = torch.arange(block, until + 1, device=q.device) * size
        starts = (-(-edges.clamp(max=end) // stride)).clamp(min=first_vector) - first_vector - edge(block)
        _sum_pages(logits, starts, first_vector + edge(block), sm_scale, rule, out, first_block + block - first)


def _sum_pages(
    logits: torch.Tensor, starts: torch.Tensor, first_vector: int, sm_scale: float, rule: SparsityRule,
    out: torch.Tensor, first_block: int,
) -> None:  # fmt: skip
    heads, num_rows, seen = logits.shape
    per_page = PAGE_SIZE // key_tokens(rule)
    most_rows = int(triton.next_power_of_2(rule.query_block // row_tokens(rule)))
    _row_mass_kernel[(len(starts) - 1, heads)](
        logits, num_rows, seen, starts, first_vector, out, first_block, out.shape[1], out.shape[2],
        logit_scale(sm_scale, rule) * math.log2(math.e),
        ROWS=most_rows, KEYS=max(_TILE // most_rows, per_page), PER_PAGE=per_page, ROW_TOKENS=row_tokens(rule),
        KEY_TOKENS=key_tokens(rule), num_warps=8,
    )  # fmt: skip
