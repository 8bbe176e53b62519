# SPDX-License-Identifier: Apache-2.0
"""Every score and choice on a GPU (or in Triton's interpreter) against its torch definition, lists and attention."""

import functools
import itertools

import pytest
import torch
from oracle import masked_attention
from paged_attention import TorchPagedAttention
from paged_batch import DEVICE, PagedBatch, make_batch

from shplb.kernels.dealt_plan import Blocks, deal_work
from shplb.kernels.scores import key_vectors, page_scores
from shplb.kernels.selection import RequestPages, covering_counts, rank_pages, select_pages
from shplb.policies import SCORES, Policy

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real kernel")

SHAPES = [(64, 3, 2), (128, 2, 1)]  # head_dim, group size, KV heads
BATCHES = [([128, 0, 70], [333, 65, 130]), ([0], [700])]
OTHERS = [score for score in SCORES if score != "mean_pool"]


def batch_of(
    policy: Policy, lens: tuple[list[int], list[int]], shape: tuple[int, int, int], *, shared_lists: bool = False
) -> PagedBatch:
    head_dim, group, kv_heads = shape
    attention = TorchPagedAttention()
    attention.num_ctas = 132  # as the batch's planner has
    return make_batch(
        *lens, head_dim=head_dim, group=group, kv_heads=kv_heads, seed=1, policy=policy, attention=attention,
        shared_lists=shared_lists,
    )  # fmt: skip


def selected(batch: PagedBatch, layer: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(physical pages, pages of the request, scores) on the CPU."""
    seen: list[torch.Tensor] = []
    physical = batch.select(layer, lambda pages, scores: seen.extend((pages, scores))).cpu()
    return physical, seen[0].cpu(), seen[1].cpu()


def rows_of(batch: PagedBatch, request: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(q of a request's new tokens, its keys, prefix) on the CPU."""
    blocks = [block for block in batch.blocks() if block.request == request]
    first, last = blocks[0], blocks[-1]
    q = batch.q[first.offset : last.offset + last.end_row - last.first_row]
    return q.cpu(), batch.keys_of(request).cpu(), first.first_row


@pytest.mark.parametrize("score", OTHERS)
@pytest.mark.parametrize(("shape", "lens"), zip(SHAPES, BATCHES, strict=True), ids=str)
def test_scores_equal_the_definition(
    score: str, shape: tuple[int, int, int], lens: tuple[list[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shplb.kernels.slab_mass._SLAB_BYTES", 40_000)  # several slabs
    batch = batch_of(Policy("uniform", score, "top_k"), lens, shape)
    physical, pages, scores = selected(batch)
    for block in batch.blocks():
        q, keys, prefix = rows_of(batch, block.request)
        rows = q[block.first_row - prefix : block.end_row - prefix]
        expected = page_scores(rows, key_vectors(keys, batch.rule), block.first_row, batch.sm_scale, batch.rule)
        got = scores[:, block.index, : block.visible]
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=5e-3)
        for head, (start, end) in batch.lists(block, layer=1).items():
            order = rank_pages(got[head : head + 1], block.first_row, block.end_row, batch.rule)
            kept = select_pages(order, [end - start])[0]
            assert pages[start:end].tolist() == kept.tolist()
            assert physical[start:end].tolist() == batch.physical(block.request, kept).tolist()


@pytest.mark.parametrize("choice", ["a_shape", "vertical_slash"])
@pytest.mark.parametrize("lens", BATCHES, ids=str)
def test_planned_lists_equal_the_definition(choice: str, lens: tuple[list[int], list[int]]) -> None:
    batch = batch_of(Policy("uniform", "mean_pool", choice), lens, SHAPES[0])
    physical, pages, scores = selected(batch)
    choosers = [RequestPages(batch.rule, *rows_of(batch, request), batch.sm_scale) for request in range(len(lens[0]))]
    for block in batch.blocks():
        lists = batch.lists(block, layer=1)
        keep = [end - start for start, end in lists.values()]
        expected, expected_scores = choosers[block.request].choose(block.first_row, block.end_row, keep)
        torch.testing.assert_close(scores[:, block.index, : block.visible], expected_scores, atol=1e-5, rtol=1e-4)
        for head, (start, end) in lists.items():
            assert pages[start:end].tolist() == expected[head].tolist()
            assert physical[start:end].tolist() == batch.physical(block.request, expected[head]).tolist()


@pytest.mark.parametrize(("score", "lens"), zip(["mean_pool", "antidiagonal_16"], BATCHES, strict=True), ids=str)
def test_covering_lists_equal_the_definition(score: str, lens: tuple[list[int], list[int]]) -> None:
    batch = batch_of(Policy("uniform", score, "top_p", 0.6), lens, SHAPES[0])
    physical, pages, scores = selected(batch)
    lengths = set()
    for block in batch.blocks():
        got = scores[:, block.index, : block.visible]
        order = rank_pages(got, block.first_row, block.end_row, batch.rule)
        counts = covering_counts(got, order, block.first_row, block.end_row, batch.rule)
        for head, (start, end) in batch.lists(block, layer=1).items():
            kept = select_pages(order[head : head + 1], [counts[head]])[0]
            lengths.add(end - start)
            assert pages[start:end].tolist() == kept.tolist()
            assert physical[start:end].tolist() == batch.physical(block.request, kept).tolist()
    assert len(lengths) > 3


@on_cpu
@pytest.mark.parametrize("choice", ["top_p", "a_shape", "vertical_slash"])
def test_attention_is_over_the_lists(choice: str) -> None:
    batch = batch_of(Policy("uniform", "antidiagonal_8", choice, 0.5), BATCHES[0], SHAPES[0])
    out = torch.full_like(batch.q, float("nan"))
    seen: list[torch.Tensor] = []
    batch.prefill.run(
        batch.step, 0, batch.q, batch.k_pool, batch.v_pool, batch.sm_scale, out, lambda pages, _: seen.append(pages)
    )
    for block in batch.blocks():
        rows, slots = slice(block.offset, block.offset + block.end_row - block.first_row), batch.slots(block.request)
        for head, (start, end) in batch.lists(block, layer=0).items():
            k, v = (pool[slots][:, head // 3] for pool in (batch.k_pool, batch.v_pool))
            pages = seen[0][start:end].tolist()
            expected = masked_attention(batch.q[rows, head], k, v, block.first_row, pages, batch.sm_scale)
            torch.testing.assert_close(out[rows, head].double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("items", "ctas"), [(5, 7), (14, 7), (50, 7), (64, 8), (57, 8)])
def test_dealt_work_is_each_item_once_and_level(items: int, ctas: int) -> None:
    generator = torch.Generator().manual_seed(items)
    counts = torch.randint(0, 40, (items,), generator=generator).int().to(DEVICE)
    first = torch.arange(items, device=DEVICE, dtype=torch.int32) * 128 + 40 * 128
    blocks = Blocks(first, torch.full_like(first, 100), first)
    plan = deal_work(counts, blocks, 1, ctas)
    words = plan.workspace.view(torch.int32).cpu()
    table = functools.partial(_table, words, plan.plan_info)
    indptr = table(6, ctas + 1)
    rows, starts, lens, tokens, heads = (table(index, items) for index in (1, 2, 3, 4, 5))
    assert sorted(rows.tolist()) == first.tolist()
    block = (rows - 40 * 128) // 128
    assert starts.tolist() == plan.list_indptr.cpu()[:-1][block].tolist()
    # Rows end 28 tokens before the end of a page.
    assert tokens.tolist() == [max(int(count) * 64 - 28, 0) for count in counts.cpu()[block]]
    assert (set(lens.tolist()), set(heads.tolist())) == ({100}, {0})
    assert (indptr[0], indptr[-1]) == (0, items)
    sums = torch.stack([tokens[a:b].sum() for a, b in itertools.pairwise(indptr.tolist())])
    assert sums.max() - sums.min() <= tokens.max()
    sizes = indptr[1:] - indptr[:-1]
    assert sizes.max() - sizes.min() <= 1


def _table(words: torch.Tensor, plan_info: list[int], index: int, count: int) -> torch.Tensor:
    return words[plan_info[index] // 4 :][:count]


def test_shared_lists_cover_the_sum_of_their_heads() -> None:
    batch = batch_of(Policy("uniform", "mean_pool", "top_p", 0.7), BATCHES[1], SHAPES[0], shared_lists=True)
    _, pages, scores = selected(batch)
    for block in batch.blocks():
        got = scores[:, block.index, : block.visible].view(2, 3, -1).sum(dim=1)
        order = rank_pages(got, block.first_row, block.end_row, batch.rule)
        counts = covering_counts(got, order, block.first_row, block.end_row, batch.rule)
        for head, (start, end) in batch.lists(block, layer=1).items():
            assert pages[start:end].tolist() == select_pages(order[head : head + 1], [counts[head]])[0].tolist()
