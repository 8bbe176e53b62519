# SPDX-License-Identifier: Apache-2.0
"""Pages of query blocks in bands of rank, on a GPU: which point of a curve is the first that keeps a page.

A curve's points keep more and more of one ranking, so every page has one *step*: the first point that keeps it. All
that curves need of the ranking is these steps. ``BAND`` steps that follow each other make a band; a band's list holds
the pages, ascending, that any of a few query heads of one KV group has in it, and says for each of those heads which
step it is, so that one read of a page serves them all.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

BAND = 4  # steps of a band: as many accumulators as registers hold
_NONE = 15  # of a head that does not have the page in the band
_NEVER = 127  # step of a page that the block does not see


class BandLists(NamedTuple):
    """pages: int32 ``[num_tiles, num_blocks, num_bands, max_pages]``, pages of the pool; codes: int32, the same shape,
    4 bits per head: its step in the band, 15 for none; lengths: int32 ``[num_tiles, num_blocks, num_bands]``."""

    pages: torch.Tensor
    codes: torch.Tensor
    lengths: torch.Tensor


def rank_steps(scores: torch.Tensor, forced: torch.Tensor, visible: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """int8 ``[num_qo_heads, num_blocks, max_pages]``: step of every page; 127 where the block does not see it.

    Pages are ranked as ``selection.rank_pages`` ranks them: forced ones first, then by descending score, ties to the
    lower page. scores: float32 ``[num_qo_heads, num_blocks, max_pages]``, not negative; overwritten. forced, visible:
    bool ``[num_blocks, max_pages]``; steps: int8 ``[num_blocks, max_pages]`` from :func:`steps_of_ranks`.
    """
    scores.masked_fill_(forced, float("inf")).masked_fill_(~visible, -1.0)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    found = torch.empty(scores.shape, dtype=torch.int8, device=scores.device)
    return found.scatter_(2, order, steps.expand_as(order))


def steps_of_ranks(counts: torch.Tensor, max_pages: int) -> torch.Tensor:
    """int8 ``[num_blocks, max_pages]``: step of the page at every rank.

    counts: int64 ``[num_blocks, num_points]``, pages kept at each point, ascending; the last point keeps all.
    """
    ranks = torch.arange(max_pages, device=counts.device).expand(len(counts), -1).contiguous()
    steps = torch.searchsorted(counts, ranks, right=True)
    return steps.masked_fill_(ranks >= counts[:, -1:], _NEVER).to(torch.int8)


@triton.jit(do_not_specialize=["num_blocks", "max_pages"])
def _band_lists_kernel(
    steps_ptr, page_table_ptr, pages_ptr, codes_ptr, lengths_ptr, num_blocks, max_pages,
    GROUP: tl.constexpr, HEAD_TILES: tl.constexpr, LANES: tl.constexpr, BANDS: tl.constexpr, BAND: tl.constexpr,
    NONE: tl.constexpr, NEVER: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, tile = tl.program_id(0), tl.program_id(1)
    first_head = tile // HEAD_TILES * GROUP + tile % HEAD_TILES * LANES
    end_head = (tile // HEAD_TILES + 1) * GROUP
    page = tl.arange(0, WIDTH)
    inside = page < max_pages
    physical = tl.load(page_table_ptr + page, mask=inside, other=0)
    for band in tl.static_range(BANDS):
        codes = tl.zeros((WIDTH,), tl.int32)
        here = tl.zeros((WIDTH,), tl.int32)
        for lane in tl.static_range(LANES):
            line = ((first_head + lane).to(tl.int64) * num_blocks + block) * max_pages
            real = inside & (first_head + lane < end_head)
            step = tl.load(steps_ptr + line + page, mask=real, other=NEVER).to(tl.int32)
            mine = step // BAND == band
            codes |= tl.where(mine, step % BAND, NONE) << (4 * lane)
            here |= mine.to(tl.int32)
        at = (tile * num_blocks + block) * BANDS + band
        place = at.to(tl.int64) * max_pages + tl.cumsum(here, axis=0) - 1
        tl.store(pages_ptr + place, physical, mask=here > 0)
        tl.store(codes_ptr + place, codes, mask=here > 0)
        tl.store(lengths_ptr + at, tl.sum(here, axis=0))


def band_lists(steps: torch.Tensor, page_table: torch.Tensor, group_size: int, lanes: int, bands: int) -> BandLists:
    """Lists of every tile of at most ``lanes`` query heads of one KV group, block and band.

    steps: from :func:`rank_steps`; page_table: int32 ``[max_pages]``, the pool's page of each of the request's.
    """
    heads, num_blocks, max_pages = steps.shape
    head_tiles = -(-group_size // lanes)
    tiles = heads // group_size * head_tiles
    shape = (tiles, num_blocks, bands, max_pages)
    pages, codes = torch.empty((2, *shape), dtype=torch.int32, device=steps.device)
    lengths = torch.empty(shape[:3], dtype=torch.int32, device=steps.device)
    width = int(triton.next_power_of_2(max_pages))
    _band_lists_kernel[(num_blocks, tiles)](
        steps, page_table, pages, codes, lengths, num_blocks, max_pages,
        GROUP=group_size, HEAD_TILES=head_tiles, LANES=lanes, BANDS=bands, BAND=BAND, NONE=_NONE, NEVER=_NEVER,
        WIDTH=width, num_warps=min(max(width // 256, 1), 8),
    )  # fmt: skip
    return BandLists(pages, codes, lengths)
