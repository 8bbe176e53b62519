# SPDX-License-Identifier: Apache-2.0
"""Sparse prefill equals its definition: random budgets, ragged lengths, prefixes, batches, a scattered pool."""

from typing import Any

import numpy as np
import pytest
import torch
from oracle import masked_attention, pages_by_definition

from shplb.model import Fingerprint, ModelShape
from shplb.plan import ServingPlan
from shplb.sglang.metadata import StepBudgets, cut_query_blocks
from shplb.sglang.torch_prefill import TorchPrefill
from shplb.sparsity import SparsityRule

LAYERS, KV_HEADS, GROUP, DIM = 2, 2, 3, 64
HEADS = KV_HEADS * GROUP


def make_plan(seed: int, query_block: int, **rule: Any) -> ServingPlan:
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(KV_HEADS) for _ in range(LAYERS)]).astype(np.int32)
    return ServingPlan(
        model=ModelShape("LlamaForCausalLM", LAYERS, HEADS, KV_HEADS, DIM, HEADS * DIM),
        fingerprint=Fingerprint("test"),
        tp_size=1,
        rule=SparsityRule(query_block=query_block, **{"dense_below_tokens": 256, **rule}),
        objective="min_error",
        scope="model",
        density=0.3,
        profile_hash="",
        versions={},
        lengths=np.array([512, 2048], dtype=np.int64),
        budgets=rng.uniform(0.02, 0.9, size=(LAYERS, HEADS, 2)),
        physical_to_logical=order,
        loads=np.ones((LAYERS, KV_HEADS), dtype=np.int64),
    )


@pytest.mark.parametrize("query_block", [128, 192])
@pytest.mark.parametrize(
    ("prefix_lens", "new_lens"),
    [([0], [1337]), ([0, 0, 0], [700, 65, 411]), ([640, 0, 64], [517, 333, 901]), ([1283], [1]), ([97], [640])],
)
def test_equals_masked_dense(query_block: int, prefix_lens: list[int], new_lens: list[int]) -> None:
    plan = make_plan(len(prefix_lens) + sum(new_lens), query_block)
    step = StepBudgets(plan.budget_table(4096), prefix_lens, new_lens)
    heads = plan.local_qo_heads(0)
    generator = torch.Generator().manual_seed(sum(new_lens))
    lens = [prefix + new for prefix, new in zip(prefix_lens, new_lens, strict=True)]
    slots = list(torch.randperm(sum(lens) + 50, generator=generator)[: sum(lens)].split(lens))
    k_pool, v_pool = torch.randn(2, sum(lens) + 50, KV_HEADS, DIM, generator=generator)
    q = torch.randn(sum(new_lens), HEADS, DIM, generator=generator) * 2
    runner = TorchPrefill(plan.rule, heads.tolist())
    for layer in range(LAYERS):
        out = runner.run(q, k_pool, v_pool, slots, step, layer, DIM**-0.5, None)
        for index, block in enumerate(step.blocks):
            rows = slice(block.offset, block.offset + block.end_row - block.first_row)
            for local, head in enumerate(heads[layer].tolist()):
                k, v = (pool[slots[block.request]][:, local // GROUP] for pool in (k_pool, v_pool))
                pages = pages_by_definition(
                    q[rows, local], k[: block.end_row], block.first_row, int(step.keep[layer, head, index]),
                    stride=16, sink=1, local=1, scale=DIM**-0.5,
                )  # fmt: skip
                expected = masked_attention(q[rows, local], k, v, block.first_row, pages, DIM**-0.5)
                torch.testing.assert_close(out[rows, local].double(), expected, atol=1e-5, rtol=1e-5)
    assert not step.dense or max(lens) <= 256 or max(new_lens) == 1


def test_blocks_are_cut_at_absolute_multiples() -> None:
    blocks = cut_query_blocks([100, 0], [300, 130], 128)
    assert [(b.request, b.offset, b.first_row, b.end_row) for b in blocks] == [
        (0, 0, 100, 128), (0, 28, 128, 256), (0, 156, 256, 384), (0, 284, 384, 400), (1, 300, 0, 128),
        (1, 428, 128, 130),
    ]  # fmt: skip


def test_decode_rows_of_a_mixed_batch_stay_dense() -> None:
    step = StepBudgets(make_plan(0, 128).budget_table(4096), [0, 2000], [900, 1])
    rows = [index for index, block in enumerate(step.blocks) if block.request == 1]
    assert np.all(step.keep[:, :, rows] == 32)
    assert not step.dense


def test_ties_go_to_the_lower_page() -> None:
    from shplb.kernels.selection import rank_pages, select_pages

    rule = SparsityRule(query_block=128)
    order = rank_pages(torch.full((1, 12), 0.5), 11 * 64, 12 * 64, rule)
    assert select_pages(order, [6])[0].tolist() == [0, 1, 2, 3, 10, 11]


def test_chunking_on_block_boundaries_changes_nothing() -> None:
    plan = make_plan(7, 192)
    table, heads = plan.budget_table(4096), plan.local_qo_heads(0)
    generator = torch.Generator().manual_seed(3)
    total, cut = 1500, 192 * 4
    q = torch.randn(total, HEADS, DIM, generator=generator)
    k_pool, v_pool = torch.randn(2, total, KV_HEADS, DIM, generator=generator)
    runner = TorchPrefill(plan.rule, heads.tolist())

    def run(prefix: int, new: int) -> torch.Tensor:
        slots = [torch.arange(prefix + new)]
        return runner.run(
            q[prefix : prefix + new], k_pool, v_pool, slots, StepBudgets(table, [prefix], [new]), 0, 0.125, None
        )

    torch.testing.assert_close(torch.cat([run(0, cut), run(cut, total - cut)]), run(0, total), atol=1e-6, rtol=0)
