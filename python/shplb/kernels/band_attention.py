# SPDX-License-Identifier: Apache-2.0
"""Attention of sampled query rows on a GPU, split by step of the ranking: what every step adds to a head's output.

A program takes a few query heads of one KV group (its lanes), the sampled rows of one query block, and the pages of one
band of steps (``rank_bands``). A page is read once for all lanes, although each has it at a step of its own: the
product of weights and values goes to one of ``BAND`` accumulators per lane. Reading is what such a walk costs. With
few rows per block, lists of their own would make every head of a group read nearly the whole cache.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from shplb.kernels.rank_bands import BAND, BandLists
from shplb.sparsity import PAGE_SIZE

_MOST_LANES = 4
_TILE = 8192  # rows of a tile times head_dim: what BAND accumulators and a product may have in registers
_MOST_STAGES = 4  # pages in shared memory or on their way there, one more than buffers
_OTHER_BYTES = 48 * 1024  # of shared memory, at most: queries, weights, reductions
_NOTHING = -1.0e30  # maximum of a row that has seen no key: finite, so that differences are numbers


class TileShape(NamedTuple):
    """lanes: query heads of a tile; rows: of each of them; both powers of two."""

    lanes: int
    rows: int

    @classmethod
    def of(cls, group_size: int, head_dim: int, most_rows: int) -> "TileShape":
        """most_rows: measured rows of a block; more of them than a tile takes are measured in several passes."""
        rows = 32 if most_rows > 16 and head_dim <= 64 else 16
        lanes = min(int(triton.next_power_of_2(group_size)), _MOST_LANES, max(_TILE // (rows * head_dim), 1))
        return cls(lanes, rows)


class StepSums(NamedTuple):
    """Sums over the pages of every step, in base 2 relative to ``largest`` of the step's band.

    outputs: float32 ``[num_qo_heads, num_blocks, num_steps, rows, head_dim]``; weights: ``[num_qo_heads, num_blocks,
    num_steps, rows]``; largest: ``[num_qo_heads, num_blocks, num_bands, rows]``.
    """

    outputs: torch.Tensor
    weights: torch.Tensor
    largest: torch.Tensor


@triton.jit
def _add(output, weight, product, total, alpha, code, STEP: tl.constexpr):
    mine = (code == STEP).to(tl.float32)
    return output * alpha[:, None] + product * mine[:, None], weight * alpha + total * mine


@triton.jit
def _add_page(
    q, k_ptr, k_stride, v_ptr, v_stride, code, scale, position, first_key, end,
    largest, o0, o1, o2, o3, w0, w1, w2, w3,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, BAND: tl.constexpr, NOTHING: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One page at k_ptr, v_ptr; code: the step in the band of every row; MASKED: rows and the request end in it."""
    token, dim = tl.arange(0, PAGE), tl.arange(0, HEAD_DIM)
    s = tl.dot(q, tl.load(k_ptr + token[None, :] * k_stride + dim[:, None]), input_precision="ieee")
    v_ptrs = v_ptr + token[:, None] * v_stride + dim[None, :]
    if MASKED:
        s = tl.where((first_key + token)[None, :] <= position[:, None], s, float("-inf"))
        # What is behind the last token need not be a number.
        v = tl.load(v_ptrs, mask=(first_key + token < end)[:, None], other=0.0)
    else:
        v = tl.load(v_ptrs)
    # Rows without a step here weigh nothing: their shift is far above any logit.
    has_step = code < BAND
    new = tl.where(has_step, tl.maximum(largest, tl.max(s, axis=1) * scale), largest)
    p = tl.exp2(s * scale - tl.where(has_step, new, -NOTHING)[:, None])
    alpha = tl.exp2(largest - new)
    product, total = tl.dot(p.to(v.dtype), v, input_precision="ieee"), tl.sum(p, axis=1)
    o0, w0 = _add(o0, w0, product, total, alpha, code, 0)
    o1, w1 = _add(o1, w1, product, total, alpha, code, 1)
    o2, w2 = _add(o2, w2, product, total, alpha, code, 2)
    o3, w3 = _add(o3, w3, product, total, alpha, code, 3)
    return new, o0, o1, o2, o3, w0, w1, w2, w3


@triton.jit
def _store(outputs_ptr, weights_ptr, at, real, output, weight, HEAD_DIM: tl.constexpr):
    dim = tl.arange(0, HEAD_DIM)
    tl.store(outputs_ptr + at[:, None] * HEAD_DIM + dim[None, :], output, mask=real[:, None])
    tl.store(weights_ptr + at, weight, mask=real)


@triton.jit(do_not_specialize=["num_blocks", "max_pages"])
def _band_attention_kernel(
    q_ptr, q_row_stride, q_head_stride, k_ptr, k_stride, k_head_stride, v_ptr, v_stride, v_head_stride,
    rows_ptr, first_row_ptr, end_row_ptr, shift_ptr, pages_ptr, codes_ptr, lengths_ptr,
    outputs_ptr, weights_ptr, largest_ptr, num_blocks, max_pages, scale,
    GROUP: tl.constexpr, HEAD_TILES: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr, BAND: tl.constexpr, BANDS: tl.constexpr, NOTHING: tl.constexpr,
):  # fmt: skip
    # The longest lists first; heads of other KV groups last, so that programs at work share what is in L2.
    block, band, tile = num_blocks - 1 - tl.program_id(0), BANDS - 1 - tl.program_id(1), tl.program_id(2)
    lane, row = tl.arange(0, LANES * ROWS) // ROWS, tl.arange(0, LANES * ROWS) % ROWS
    group, in_group = tile // HEAD_TILES, tile % HEAD_TILES * LANES + lane
    head = group * GROUP + tl.minimum(in_group, GROUP - 1)
    position = tl.load(rows_ptr + block * ROWS + row)
    source = (position + tl.load(shift_ptr + block)).to(tl.int64) * q_row_stride + head * q_head_stride
    q = tl.load(q_ptr + source[:, None] + tl.arange(0, HEAD_DIM)[None, :])
    at = (tile * num_blocks + block) * BANDS + band
    length, at = tl.load(lengths_ptr + at), at.to(tl.int64) * max_pages
    k_ptr, v_ptr = k_ptr + group * k_head_stride, v_ptr + group * v_head_stride
    largest = tl.full((LANES * ROWS,), NOTHING, tl.float32)
    w0, o0 = tl.zeros((LANES * ROWS,), tl.float32), tl.zeros((LANES * ROWS, HEAD_DIM), tl.float32)
    w1, w2, w3, o1, o2, o3 = w0, w0, w0, o0, o0, o0
    # The block's own pages are forced, so all heads have them at the first step: they end the first band's lists.
    own_page, end = tl.load(first_row_ptr + block) // PAGE, tl.load(end_row_ptr + block)
    full = length - tl.where(band == 0, tl.cdiv(end, PAGE) - own_page, 0)
    page, code = tl.load(pages_ptr + at), tl.load(codes_ptr + at)
    for index in range(full):
        token = page.to(tl.int64) * PAGE
        steps = code >> (4 * lane) & 15
        # Asked for one page ahead, else the copies of keys and values, which it is for, wait for it.
        page = tl.load(pages_ptr + at + index + 1, mask=index + 1 < full, other=0)
        code = tl.load(codes_ptr + at + index + 1, mask=index + 1 < full, other=0)
        largest, o0, o1, o2, o3, w0, w1, w2, w3 = _add_page(
            q, k_ptr + token * k_stride, k_stride, v_ptr + token * v_stride, v_stride, steps, scale, position, 0, end,
            largest, o0, o1, o2, o3, w0, w1, w2, w3, PAGE, HEAD_DIM, BAND, NOTHING, False,
        )  # fmt: skip
    for index in tl.range(full, length, num_stages=1):
        token = tl.load(pages_ptr + at + index).to(tl.int64) * PAGE
        steps = tl.load(codes_ptr + at + index) >> (4 * lane) & 15
        largest, o0, o1, o2, o3, w0, w1, w2, w3 = _add_page(
            q, k_ptr + token * k_stride, k_stride, v_ptr + token * v_stride, v_stride, steps, scale, position,
            (own_page + index - full) * PAGE, end,
            largest, o0, o1, o2, o3, w0, w1, w2, w3, PAGE, HEAD_DIM, BAND, NOTHING, True,
        )  # fmt: skip
    line, real = (head.to(tl.int64) * num_blocks + block) * BANDS + band, in_group < GROUP
    tl.store(largest_ptr + line * ROWS + row, largest, mask=real)
    at = line * BAND * ROWS + row
    _store(outputs_ptr, weights_ptr, at, real, o0, w0, HEAD_DIM)
    _store(outputs_ptr, weights_ptr, at + ROWS, real, o1, w1, HEAD_DIM)
    _store(outputs_ptr, weights_ptr, at + 2 * ROWS, real, o2, w2, HEAD_DIM)
    _store(outputs_ptr, weights_ptr, at + 3 * ROWS, real, o3, w3, HEAD_DIM)


def band_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    rows: torch.Tensor,
    first_row: torch.Tensor,
    end_row: torch.Tensor,
    shift: torch.Tensor,
    lists: BandLists,
    lanes: int,
    sm_scale: float,
) -> StepSums:
    """What the pages of every step add to the outputs of the given rows, one tile of rows per block.

    q: ``[num_rows, num_qo_heads, head_dim]``; k_pool, v_pool: ``[pool_tokens, num_kv_heads, head_dim]`` of q's type,
    last axes dense, the tokens of a page together; rows: int32 ``[num_blocks, TileShape.rows]``, absolute positions;
    first_row, end_row, shift: int32 ``[num_blocks]``, the block's rows, and what added to a position is its place in q;
    lists: from :func:`rank_bands.band_lists` with the same ``lanes``, all pages that a block sees on them.
    Weights are rounded to q's type before they meet the values, as in the engine's own attention.
    """
    (_, heads, head_dim), kv_heads = q.shape, k_pool.shape[1]
    tiles, num_blocks, bands, max_pages = lists.pages.shape
    shape = (heads, num_blocks, bands * BAND, rows.shape[1])
    outputs = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
    weights = torch.empty(shape, dtype=torch.float32, device=q.device)
    largest = torch.empty((heads, num_blocks, bands, rows.shape[1]), dtype=torch.float32, device=q.device)
    constants, options = compile_options(
        heads // kv_heads, tiles // kv_heads, lanes, rows.shape[1], head_dim, bands, _stages(q)
    )
    _band_attention_kernel[(num_blocks, bands, tiles)](
        q, q.stride(0), q.stride(1), k_pool, k_pool.stride(0), k_pool.stride(1),
        v_pool, v_pool.stride(0), v_pool.stride(1), rows, first_row, end_row, shift, *lists,
        outputs, weights, largest, num_blocks, max_pages, sm_scale * math.log2(math.e), **constants, **options,
    )  # fmt: skip
    return StepSums(outputs, weights, largest)


def compile_options(
    group_size: int, head_tiles: int, lanes: int, rows: int, head_dim: int, bands: int, stages: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """(constants of the kernel, options of its compiler)."""
    constants = {
        "GROUP": group_size, "HEAD_TILES": head_tiles, "LANES": lanes, "ROWS": rows, "HEAD_DIM": head_dim,
        "PAGE": PAGE_SIZE, "BAND": BAND, "BANDS": bands, "NOTHING": _NOTHING,
    }  # fmt: skip
    # Eight warps have the registers for accumulators of a full tile, four for those of half a tile.
    return constants, {"num_warps": 8 if lanes * rows * head_dim > _TILE // 2 else 4, "num_stages": stages}


def _stages(q: torch.Tensor) -> int:
    """As many pages on their way as the GPU has shared memory for: 32 KB each at head_dim 128."""
    if not q.is_cuda:
        return _MOST_STAGES
    free = torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin - _OTHER_BYTES
    return max(min(1 + free // (2 * PAGE_SIZE * q.shape[2] * q.element_size()), _MOST_STAGES), 2)
