# SPDX-License-Identifier: Apache-2.0
"""Every policy on the GPU: scores and lists against their torch definition, attention against dense with a mask."""

import numpy as np
import pytest
import torch
from paged_batch import DEVICE, PagedBatch, make_batch
from test_sm90_prefill import LIMIT, kernel, worst_error

from shplb.kernels.flashinfer_public import PublicPrefill
from shplb.kernels.scores import key_vectors, page_scores
from shplb.kernels.selection import RequestPages, covering_counts, rank_pages, select_pages
from shplb.kernels.shadow import kept_pages, pages_of_tokens, shadow_rows
from shplb.policies import POLICIES, SCORES, Policy
from shplb.sparsity import PAGE_SIZE

# Products are rounded to bfloat16 before the softmax.
_ATOL, _RTOL = 2e-3, 0.06
LENS = [([0], [5000]), ([640, 0, 70], [2500, 65, 1300])]
RIVALS = {name: policy for name, policy in POLICIES.items() if policy[1:] != POLICIES["shplb"][1:]}


def batch_of(policy: Policy, lens: tuple[list[int], list[int]], *, public: bool = False, seed: int = 2) -> PagedBatch:
    attention = PublicPrefill(torch.bfloat16, 128, DEVICE) if public else kernel(torch.bfloat16, 128)
    return make_batch(
        *lens, head_dim=128, group=4, kv_heads=2, seed=seed, dtype=torch.bfloat16, attention=attention, policy=policy
    )


def selected(batch: PagedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    seen: list[torch.Tensor] = []
    batch.select(0, lambda pages, scores: seen.extend((pages, scores)))
    return seen[0], seen[1]


@pytest.mark.parametrize("name", list(RIVALS))
@pytest.mark.parametrize("lens", LENS, ids=str)
def test_attention_is_over_the_lists(name: str, lens: tuple[list[int], list[int]]) -> None:
    batch = batch_of(POLICIES[name], lens)
    assert worst_error(batch, 0, every=5) <= LIMIT[torch.bfloat16]
    assert worst_error(batch, 1, every=5) <= LIMIT[torch.bfloat16]


@pytest.mark.parametrize("name", ["xattention", "streaming_llm"])
def test_the_public_wrapper_takes_the_same_lists(name: str) -> None:
    assert worst_error(batch_of(POLICIES[name], LENS[1], public=True), 0, every=3) <= LIMIT[torch.bfloat16]


@pytest.mark.parametrize("score", [score for score in SCORES if score != "mean_pool"])
@pytest.mark.parametrize("lens", LENS, ids=str)
def test_scores_equal_the_definition(score: str, lens: tuple[list[int], list[int]]) -> None:
    batch = batch_of(Policy("uniform", score, "top_k"), lens)
    batch.q *= 0.25  # logits as wide as a trained model's, not ones that bfloat16 can't hold
    pages, scores = selected(batch)
    for block in batch.blocks()[:: max(len(batch.blocks()) // 8, 1)]:
        q = batch.q[block.offset : block.offset + block.end_row - block.first_row]
        keys = key_vectors(batch.keys_of(block.request), batch.rule)
        expected = page_scores(q, keys, block.first_row, batch.sm_scale, batch.rule)
        got = scores[:, block.index, : block.visible]
        torch.testing.assert_close(got, expected, atol=_ATOL, rtol=_RTOL)
        for head, (start, end) in batch.lists(block, layer=0).items():
            order = rank_pages(got[head : head + 1], block.first_row, block.end_row, batch.rule)
            assert torch.equal(pages[start:end].long(), select_pages(order, [end - start])[0])


@pytest.mark.parametrize("choice", ["a_shape", "vertical_slash", "top_p"])
@pytest.mark.parametrize("lens", LENS, ids=str)
def test_choices_equal_the_definition(choice: str, lens: tuple[list[int], list[int]]) -> None:
    batch = batch_of(Policy("uniform", "antidiagonal_8", choice, 0.7), lens)
    pages, scores = selected(batch)
    for block in batch.blocks():
        lists = batch.lists(block, layer=0)
        keep, got = [end - start for start, end in lists.values()], scores[:, block.index, : block.visible]
        order = rank_pages(got, block.first_row, block.end_row, batch.rule)
        if choice == "top_p":
            counts = covering_counts(got, order, block.first_row, block.end_row, batch.rule)
            # Sums are added up in another order, so a list may end one page sooner or later.
            assert np.abs(np.array(keep) - counts).max() <= 1
        for head, (start, end) in lists.items():
            kept = pages[start:end].long()
            if choice == "a_shape":
                empty = torch.empty(1, 8, 128, device=DEVICE)
                chooser = RequestPages(batch.rule, empty, empty, 0, 1.0)
                expected = chooser.choose(block.first_row, block.end_row, [end - start])[0][0]
            else:
                expected = select_pages(order[head : head + 1], [end - start])[0]
            assert torch.equal(kept, expected)


def test_lines_equal_the_definition() -> None:
    batch = batch_of(POLICIES["minference"], LENS[1])
    _, scores = selected(batch)
    for request in range(3):
        blocks = [block for block in batch.blocks() if block.request == request]
        rows = slice(blocks[0].offset, blocks[-1].offset + blocks[-1].end_row - blocks[-1].first_row)
        chooser = RequestPages(
            batch.rule, batch.q[rows].float().cpu(), batch.keys_of(request).float().cpu(), blocks[0].first_row,
            batch.sm_scale,
        )  # fmt: skip
        for block in blocks[::4]:
            _, expected = chooser.choose(block.first_row, block.end_row, [4] * 8)
            got = scores[:, block.index, : block.visible].cpu()
            torch.testing.assert_close(got, expected, atol=_ATOL, rtol=_RTOL)


def test_a_shadow_check_sees_what_the_step_lost() -> None:
    batch = batch_of(POLICIES["shplb"], LENS[1])
    out = torch.full_like(batch.q, float("nan"))
    seen: list[torch.Tensor] = []
    batch.prefill.run(
        batch.step, 0, batch.q, batch.k_pool, batch.v_pool, batch.sm_scale, out, lambda pages, _: seen.append(pages)
    )
    blocks = batch.blocks()
    for block in blocks[::5]:
        slots = batch.slots(block.request)[: block.end_row]
        kept = kept_pages(
            batch.step.page_indices, batch.step.list_indptr(0), block.index, len(blocks), pages_of_tokens(slots),
            len(batch.k_pool) // PAGE_SIZE,
        )  # fmt: skip
        for head, (start, end) in batch.lists(block, layer=0).items():
            assert torch.equal(kept[head].nonzero()[:, 0], seen[0][start:end].long())
        rows = torch.arange(block.end_row - block.first_row, device=DEVICE)[::9]
        at = rows + block.offset
        found = shadow_rows(
            batch.q[at], batch.k_pool[slots], batch.v_pool[slots], out[at], rows + block.first_row, kept, batch.sm_scale
        )
        for head in range(batch.q.shape[1]):
            keys = batch.k_pool[slots, head // 4].float()
            logits = batch.q[at, head].float() @ keys.T * batch.sm_scale
            future = torch.arange(len(slots), device=DEVICE)[None] > (rows + block.first_row)[:, None]
            weights = torch.softmax(logits.masked_fill(future, float("-inf")), dim=-1)
            dense = weights @ batch.v_pool[slots, head // 4].float()
            mine = kept[head].repeat_interleave(PAGE_SIZE)[: len(slots)]
            recovered, error, norm, any_page = found[head].tolist()
            assert recovered == pytest.approx((weights * mine).sum(dim=1).mean().item(), abs=1e-3)
            assert error == pytest.approx((out[at, head].float() - dense).square().sum().item(), rel=1e-2, abs=1e-4)
            assert norm == pytest.approx(dense.square().sum().item(), rel=1e-3)
            assert any_page == 1.0
