# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of page selection against their torch definition, on a GPU or in Triton's interpreter."""

import numpy as np
import pytest
import torch
from paged_batch import PagedBatch, make_batch

from shplb.kernels.page_mass import TileShape
from shplb.kernels.scores import page_scores, pool_tokens
from shplb.kernels.selection import rank_pages, select_pages

SHAPES = [(64, 3, 3), (128, 4, 2), (128, 7, 1)]  # head_dim, group size, KV heads
BATCHES = [([0], [700]), ([128, 0, 64], [333, 65, 130]), ([0, 320], [1, 257])]


@pytest.mark.parametrize(("head_dim", "group", "kv_heads"), SHAPES)
@pytest.mark.parametrize(("prefix_lens", "new_lens"), BATCHES)
def test_lists_hold_what_the_definition_keeps(
    head_dim: int, group: int, kv_heads: int, prefix_lens: list[int], new_lens: list[int]
) -> None:
    batch = make_batch(prefix_lens, new_lens, head_dim=head_dim, group=group, kv_heads=kv_heads, seed=head_dim + group)
    seen: list[torch.Tensor] = []
    physical = batch.select(layer=1, observe=lambda pages, scores: seen.extend((pages, scores))).cpu()
    pages, scores = seen[0].cpu(), seen[1].cpu()
    for block in batch.blocks():
        lists, expected = batch.lists(block, layer=1), definition(batch, block.index)
        for head in range(group * kv_heads):
            start, end = lists[head]
            got = scores[head, block.index, : block.visible]
            torch.testing.assert_close(got, expected[head], atol=2e-5, rtol=5e-3)
            order = rank_pages(got[None], block.first_row, block.end_row, batch.rule)
            kept = select_pages(order, [end - start])[0]
            assert pages[start:end].tolist() == kept.tolist()
            assert physical[start:end].tolist() == batch.physical(block.request, kept).tolist()


def definition(batch: PagedBatch, index: int) -> torch.Tensor:
    block = batch.blocks()[index]
    rows = slice(block.offset, block.offset + block.end_row - block.first_row)
    keys = batch.keys_of(block.request).cpu()
    pooled = pool_tokens(keys, 0, batch.rule.score_stride)
    return page_scores(batch.q[rows].cpu(), pooled, block.first_row, batch.sm_scale, batch.rule)


def test_bad_numbers_give_valid_lists() -> None:
    batch = make_batch([0], [700], head_dim=64, group=2, kv_heads=1, seed=5)
    batch.q[100:300] = float("nan")
    batch.k_pool[:, 0, 3] = float("inf")
    pages: list[torch.Tensor] = []
    batch.select(layer=0, observe=lambda logical, _: pages.append(logical))
    for block in batch.blocks():
        for start, end in batch.lists(block, layer=0).values():
            kept = pages[0][start:end].tolist()
            assert kept == sorted(set(kept))
            assert kept[0] == 0
            assert kept[-1] == block.visible - 1


def test_ties_go_to_the_lower_page() -> None:
    batch = make_batch([0], [1500], head_dim=64, group=1, kv_heads=1, seed=6)
    batch.q.zero_()
    pages: list[torch.Tensor] = []
    batch.select(layer=0, observe=lambda logical, _: pages.append(logical))
    block = batch.blocks()[-2]
    start, end = batch.lists(block, layer=0)[0]
    forced_tail = block.visible - max(block.first_row // 64 - 1, 0)
    chosen = end - start - forced_tail
    assert pages[0][start : start + chosen].tolist() == list(range(chosen))


@pytest.mark.parametrize(("group", "runs"), [(1, 8), (3, 16), (4, 8), (7, 8), (8, 8), (16, 16), (40, 8)])
def test_tiles_fill_the_tensor_cores(group: int, runs: int) -> None:
    shape = TileShape.of(group, runs)
    assert shape.blocks * shape.heads * shape.runs == 128
    assert shape.heads * shape.head_tiles >= group


def test_tiles_stay_within_requests() -> None:
    batch = make_batch([0, 1000, 64], [4000, 700, 100], head_dim=128, group=4, kv_heads=1, seed=7)
    tiles = batch.step.tiles.cpu().numpy()
    requests = np.array([block.request for block in batch.blocks()])
    assert [index for first, end in tiles for index in range(first, end)] == list(range(len(requests)))
    assert all(len(set(requests[first:end])) == 1 and end - first <= 4 for first, end in tiles)
