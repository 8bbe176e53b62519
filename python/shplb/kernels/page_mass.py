# SPDX-License-Identifier: Apache-2.0
"""Estimated attention mass of every page on a GPU ("mean_pool"): what ``scores.page_scores`` defines.

Two passes over pooled queries and keys, both matrix products on tensor cores: the first leaves the maximum and the sum
of every softmax row per slice of keys, the second adds the normalised weights up per page. Recomputing the product is
cheaper than keeping it: at 128K it has 8192 x 8192 entries per head.

Rows of a tile are blocks x query heads of one KV group x pooled queries, so that small groups fill the tensor cores too
and a tile of keys is read once for all of them.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shplb.sparsity import PAGE_SIZE

TILE_ROWS = 128
_TILE_KEYS = 64
_WARPS = 8
_SLICE_KEYS = 1024  # pooled keys per program: enough programs for a chunk, too


class TileShape(NamedTuple):
    """How pooled query rows make tiles: ``blocks * heads * runs`` <= TILE_ROWS, all powers of two."""

    blocks: int
    heads: int
    runs: int
    head_tiles: int  # tiles that the heads of one KV group take

    @classmethod
    def of(cls, group_size: int, runs: int) -> "TileShape":
        heads = min(int(triton.next_power_of_2(group_size)), TILE_ROWS // runs)
        return cls(TILE_ROWS // (heads * runs), heads, runs, -(-group_size // heads))


@triton.jit
def _tile_rows(
    tile_ptr, q_ptr, request_ptr, first_row_ptr, qo_len_ptr, page_starts_ptr, group, head_tile, num_heads,
    GROUP: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr, RUNS: tl.constexpr, STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Pooled queries [ROWS, HEAD_DIM] of a tile, each row's position in runs (-1: no row) and its share in the mean of
    its block, and the tile's keys: the first one, how many any row sees and how many all rows see."""
    first_block = tl.load(tile_ptr)
    end_block = tl.load(tile_ptr + 1)
    row = tl.arange(0, BLOCKS * HEADS * RUNS)
    block = first_block + row // (HEADS * RUNS)
    head = head_tile * HEADS + row // RUNS % HEADS
    run = row % RUNS
    real = (block < end_block) & (head < GROUP)
    first = tl.load(first_row_ptr + block, mask=real, other=0)
    end = first + tl.load(qo_len_ptr + block, mask=real, other=0)
    num_runs = (end - 1) // STRIDE - first // STRIDE + 1
    real = real & (run < num_runs)
    position = tl.where(real, first // STRIDE + run, -1)
    dim = tl.arange(0, HEAD_DIM)
    source = (block.to(tl.int64) * num_heads + group * GROUP + head) * RUNS + run
    q = tl.load(q_ptr + source[:, None] * HEAD_DIM + dim[None, :], mask=real[:, None], other=0.0)
    key_start = tl.load(page_starts_ptr + tl.load(request_ptr + first_block)) * (PAGE // STRIDE)
    num_keys = tl.max(position, axis=0) + 1
    common_keys = tl.min(tl.where(real, position, num_keys), axis=0) + 1
    share = 1.0 / tl.maximum(num_runs, 1).to(tl.float32)
    return q, position, share, key_start, num_keys, common_keys


@triton.jit
def _logits(q, keys_ptr, first_key, position, scale, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """Base-2 logits [ROWS, KEYS] of pooled keys from ``first_key`` on; MASKED: -inf for the future."""
    key, dim = first_key + tl.arange(0, KEYS), tl.arange(0, HEAD_DIM)
    address = keys_ptr + key[None, :] * HEAD_DIM + dim[:, None]
    if MASKED:
        keys = tl.load(address, mask=(key <= tl.max(position, axis=0))[None, :], other=0.0)
        return tl.where(key[None, :] <= position[:, None], tl.dot(q, keys) * scale, float("-inf"))
    return tl.dot(q, tl.load(address)) * scale


@triton.jit
def _add_statistics(largest, total, s):
    new = tl.maximum(largest, tl.max(s, axis=1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp2(largest - safe) + tl.sum(tl.exp2(s - safe[:, None]), axis=1)


@triton.jit
def _is_elsewhere(owned_ptr, tile_ptr, group, LISTS: tl.constexpr, LISTS_WIDTH: tl.constexpr):
    """Whether other ranks compute all blocks of the tile, for every list head of the group."""
    list_head = tl.arange(0, LISTS_WIDTH)
    at = owned_ptr + 2 * (group * LISTS + list_head)
    first = tl.min(tl.load(at, mask=list_head < LISTS, other=2147483647), axis=0)
    end = tl.max(tl.load(at + 1, mask=list_head < LISTS, other=0), axis=0)
    return (tl.load(tile_ptr) >= end) | (tl.load(tile_ptr + 1) <= first)


@triton.jit(do_not_specialize=["total_runs"])
def _softmax_statistics_kernel(
    tiles_ptr, q_ptr, k_ptr, request_ptr, first_row_ptr, qo_len_ptr, page_starts_ptr,
    max_ptr, sum_ptr, owned_ptr, num_heads, total_runs, scale,
    GROUP: tl.constexpr, HEAD_TILES: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr, RUNS: tl.constexpr,
    STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr, SLICE: tl.constexpr,
    LISTS: tl.constexpr, LISTS_WIDTH: tl.constexpr,
):  # fmt: skip
    # The last tiles see the most keys: start them first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    column = tl.program_id(1)
    group = column // HEAD_TILES
    if LISTS > 0:  # noqa: SIM102 (a constant decides)
        if _is_elsewhere(owned_ptr, tiles_ptr + 2 * tile, group, LISTS, LISTS_WIDTH):
            return
    first_key = tl.program_id(2) * SLICE
    q, position, _, key_start, num_keys, common_keys = _tile_rows(
        tiles_ptr + 2 * tile, q_ptr, request_ptr, first_row_ptr, qo_len_ptr, page_starts_ptr, group,
        column % HEAD_TILES, num_heads, GROUP, BLOCKS, HEADS, RUNS, STRIDE, HEAD_DIM, PAGE,
    )  # fmt: skip
    if first_key >= num_keys:
        return
    keys_ptr = k_ptr + (group.to(tl.int64) * total_runs + key_start) * HEAD_DIM
    rows: tl.constexpr = BLOCKS * HEADS * RUNS
    largest = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    end = tl.minimum(first_key + SLICE, num_keys)
    full = tl.maximum(tl.minimum(common_keys, end) - first_key, 0) // KEYS * KEYS + first_key
    for start in range(first_key, full, KEYS):
        s = _logits(q, keys_ptr, start, position, scale, KEYS, HEAD_DIM, False)
        largest, total = _add_statistics(largest, total, s)
    for start in range(full, end, KEYS):
        s = _logits(q, keys_ptr, start, position, scale, KEYS, HEAD_DIM, True)
        largest, total = _add_statistics(largest, total, s)
    at = ((tl.program_id(2) * tl.num_programs(1) + column) * tl.num_programs(0) + tile) * rows + tl.arange(0, rows)
    tl.store(max_ptr + at, largest)
    tl.store(sum_ptr + at, total)


@triton.jit
def _add_pages(
    out_ptr, line, real, s, shift, start, max_pages,
    PAIRS: tl.constexpr, RUNS: tl.constexpr, KEYS: tl.constexpr, PER_PAGE: tl.constexpr,
):  # fmt: skip
    weights = tl.reshape(tl.exp2(s - shift[:, None]), (PAIRS, RUNS, KEYS // PER_PAGE, PER_PAGE))
    mass = tl.sum(tl.sum(weights, axis=3), axis=1)
    page = start // PER_PAGE + tl.arange(0, KEYS // PER_PAGE)
    tl.store(out_ptr + line[:, None] + page[None, :], mass, mask=real[:, None] & (page < max_pages)[None, :])


@triton.jit(do_not_specialize=["num_blocks", "max_pages", "total_runs"])
def _page_mass_kernel(
    tiles_ptr, q_ptr, k_ptr, request_ptr, first_row_ptr, qo_len_ptr, page_starts_ptr,
    max_ptr, sum_ptr, owned_ptr, out_ptr, num_heads, num_blocks, max_pages, total_runs, scale,
    GROUP: tl.constexpr, HEAD_TILES: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr, RUNS: tl.constexpr,
    STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr, SLICE: tl.constexpr,
    LISTS: tl.constexpr, LISTS_WIDTH: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    column = tl.program_id(1)
    first_key = tl.program_id(2) * SLICE
    group, head_tile = column // HEAD_TILES, column % HEAD_TILES
    if LISTS > 0:  # noqa: SIM102 (a constant decides)
        if _is_elsewhere(owned_ptr, tiles_ptr + 2 * tile, group, LISTS, LISTS_WIDTH):
            return
    q, position, share, key_start, num_keys, common_keys = _tile_rows(
        tiles_ptr + 2 * tile, q_ptr, request_ptr, first_row_ptr, qo_len_ptr, page_starts_ptr, group, head_tile,
        num_heads, GROUP, BLOCKS, HEADS, RUNS, STRIDE, HEAD_DIM, PAGE,
    )  # fmt: skip
    if first_key >= num_keys:
        return
    keys_ptr = k_ptr + (group.to(tl.int64) * total_runs + key_start) * HEAD_DIM
    rows: tl.constexpr = BLOCKS * HEADS * RUNS
    largest = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    for part in range(tl.cdiv(num_keys, SLICE)):
        at = ((part * tl.num_programs(1) + column) * tl.num_programs(0) + tile) * rows + tl.arange(0, rows)
        other = tl.load(max_ptr + at)
        new = tl.maximum(largest, other)
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(largest - safe) + tl.load(sum_ptr + at) * tl.exp2(other - safe)
        largest = new
    # exp2(s - shift) is the row's softmax weight times its share in the block's mean; nothing where there is no row.
    shift = tl.where(position >= 0, largest + tl.log2(tl.maximum(total, 1e-30) / share), float("inf"))

    pair = tl.arange(0, BLOCKS * HEADS)
    block = tl.load(tiles_ptr + 2 * tile) + pair // HEADS
    head = head_tile * HEADS + pair % HEADS
    real = (block < tl.load(tiles_ptr + 2 * tile + 1)) & (head < GROUP)
    line = ((group * GROUP + head).to(tl.int64) * num_blocks + block) * max_pages
    per_page: tl.constexpr = PAGE // STRIDE
    end = tl.minimum(first_key + SLICE, num_keys)
    full = tl.maximum(tl.minimum(common_keys, end) - first_key, 0) // KEYS * KEYS + first_key
    for start in range(first_key, full, KEYS):
        s = _logits(q, keys_ptr, start, position, scale, KEYS, HEAD_DIM, False)
        _add_pages(out_ptr, line, real, s, shift, start, max_pages, BLOCKS * HEADS, RUNS, KEYS, per_page)
    for start in range(full, end, KEYS):
        s = _logits(q, keys_ptr, start, position, scale, KEYS, HEAD_DIM, True)
        _add_pages(out_ptr, line, real, s, shift, start, max_pages, BLOCKS * HEADS, RUNS, KEYS, per_page)


def page_mass(
    pooled_q: torch.Tensor,
    pooled_k: torch.Tensor,
    tiles: torch.Tensor,
    block_request: torch.Tensor,
    block_first_row: torch.Tensor,
    block_qo_len: torch.Tensor,
    page_starts: torch.Tensor,
    max_pages: int,
    stride: int,
    sm_scale: float,
    owned: torch.Tensor | None = None,
) -> torch.Tensor:
    """float32 ``[num_qo_heads, num_blocks, max_pages]``: estimated share of attention mass on each visible page.

    pooled_q, pooled_k: from :mod:`shplb.kernels.pooling`; tiles: int32 ``[num_tiles, 2]``, half-open ranges of at most
    ``TileShape.blocks`` blocks of one request; block_*: int32 ``[num_blocks]``, request, absolute position of the
    first row, rows; page_starts: int32 ``[num_requests]``; max_pages: pages that the longest request sees. Pages that
    a block's last tile of keys does not reach are undefined. owned: int32 ``[num_list_heads, 2]``, the blocks
    [first, end) of every list head that are wanted, where not all are; the others are undefined.
    """
    num_blocks, num_heads, runs, head_dim = pooled_q.shape
    num_kv_heads, total_runs = pooled_k.shape[:2]
    group_size = num_heads // num_kv_heads
    shape = TileShape.of(group_size, runs)
    slices = -(-max_pages * (PAGE_SIZE // stride) // _SLICE_KEYS)
    grid = (len(tiles), num_kv_heads * shape.head_tiles, slices)
    statistics = torch.empty(
        (2, slices, grid[1], grid[0], shape.blocks * shape.heads * shape.runs),
        dtype=torch.float32, device=pooled_q.device,
    )  # fmt: skip
    out = torch.empty((num_heads, num_blocks, max_pages), dtype=torch.float32, device=pooled_q.device)
    inputs = (tiles, pooled_q, pooled_k, block_request, block_first_row, block_qo_len, page_starts, *statistics,
              tiles if owned is None else owned)  # fmt: skip
    lists = 0 if owned is None else len(owned) // num_kv_heads
    shapes = {
        "GROUP": group_size, "HEAD_TILES": shape.head_tiles, "BLOCKS": shape.blocks, "HEADS": shape.heads,
        "RUNS": runs, "STRIDE": stride, "HEAD_DIM": head_dim, "PAGE": PAGE_SIZE, "KEYS": _TILE_KEYS,
        "SLICE": _SLICE_KEYS, "num_warps": _WARPS, "num_stages": 3 if head_dim <= 128 else 2,
        "LISTS": lists, "LISTS_WIDTH": int(triton.next_power_of_2(max(lists, 1))),
    }  # fmt: skip
    scale = sm_scale * math.log2(math.e)
    _softmax_statistics_kernel[grid](*inputs, num_heads, total_runs, scale, **shapes)
    _page_mass_kernel[grid](*inputs, out, num_heads, num_blocks, max_pages, total_runs, scale, **shapes)
    return out
