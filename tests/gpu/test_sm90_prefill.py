# SPDX-License-Identifier: Apache-2.0
"""The sm90 path against dense attention with a mask, in float32: every row, ragged lengths, scattered pages, poison."""

import functools
from typing import Any

import pytest
import torch
from paged_batch import DEVICE, LAYERS, Block, PagedBatch, make_batch

from shplb.kernels.flashinfer_sm90 import Sm90Prefill

SHAPES = [(64, 1, 2), (64, 3, 3), (128, 4, 2), (128, 7, 1), (128, 8, 1)]  # head_dim, group size, KV heads
BATCHES = [
    ([0], [1]), ([0], [63]), ([0], [20000]), ([12345 // 64 * 64], [7001]), ([64, 0, 640, 8000], [129, 1, 2500, 64]),
    ([6400, 1], [193, 4097]), ([63, 1023], [1, 577]),
]  # fmt: skip
LIMIT = {torch.bfloat16: 5e-3, torch.float16: 1e-3}


@functools.cache
def kernel(dtype: torch.dtype, head_dim: int) -> Sm90Prefill:
    return Sm90Prefill(dtype, head_dim, DEVICE)


def bf16_batch(prefix_lens: list[int], new_lens: list[int], seed: int, **options: Any) -> PagedBatch:
    return make_batch(
        prefix_lens, new_lens, head_dim=128, group=4, kv_heads=2, seed=seed, dtype=torch.bfloat16,
        attention=kernel(torch.bfloat16, 128), **options,
    )  # fmt: skip


def masked_dense(batch: PagedBatch, block: Block, head: int, pages: torch.Tensor) -> torch.Tensor:
    """float32 [rows, dim]: softmax over the tokens of ``pages`` up to each row."""
    group = batch.q.shape[1] // batch.k_pool.shape[1]
    tokens = (pages[:, None] * 64 + torch.arange(64, device=DEVICE)).reshape(-1)
    tokens = tokens[tokens < block.end_row]
    slots = batch.slots(block.request)[tokens]
    k, v = batch.k_pool[slots, head // group].float(), batch.v_pool[slots, head // group].float()
    q = batch.q[block.offset : block.offset + block.end_row - block.first_row, head].float()
    rows = torch.arange(block.first_row, block.end_row, device=DEVICE)
    logits = (q @ k.T * batch.sm_scale).masked_fill(tokens[None] > rows[:, None], float("-inf"))
    return torch.softmax(logits, dim=-1) @ v


def worst_error(batch: PagedBatch, layer: int, every: int = 1) -> float:
    """Largest relative error (Frobenius) over blocks and heads; the output is poisoned first."""
    out = torch.full_like(batch.q, float("nan"))
    pages: list[torch.Tensor] = []
    batch.prefill.run(
        batch.step, layer, batch.q, batch.k_pool, batch.v_pool, batch.sm_scale, out, lambda p, _: pages.append(p)
    )
    assert torch.isfinite(out).all()
    worst = 0.0
    heads_per_list = batch.q.shape[1] // batch.prefill.num_list_heads
    blocks = batch.blocks()
    indptr = batch.step.list_indptr(layer).tolist()
    for block in blocks[::every] + blocks[-1:]:
        rows = slice(block.offset, block.offset + block.end_row - block.first_row)
        for head in range(batch.q.shape[1]):
            at = head // heads_per_list * batch.step.plan.num_blocks + block.index
            expected = masked_dense(batch, block, head, pages[0][indptr[at] : indptr[at + 1]])
            error = (out[rows, head].float() - expected).norm() / expected.norm()
            worst = max(worst, error.item())
    return worst


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("head_dim", "group", "kv_heads"), SHAPES)
@pytest.mark.parametrize(("prefix_lens", "new_lens"), BATCHES, ids=str)
def test_equals_dense_with_a_mask(
    dtype: torch.dtype, head_dim: int, group: int, kv_heads: int, prefix_lens: list[int], new_lens: list[int]
) -> None:
    for shared in (False, True):
        batch = make_batch(
            prefix_lens, new_lens, head_dim=head_dim, group=group, kv_heads=kv_heads, seed=sum(new_lens), dtype=dtype,
            shared_lists=shared, attention=kernel(dtype, head_dim),
        )  # fmt: skip
        for layer in range(LAYERS if not shared else 1):
            assert worst_error(batch, layer, every=max(len(batch.blocks()) // 12, 1)) <= LIMIT[dtype]


def test_dense_budgets_equal_dense_attention() -> None:
    batch = bf16_batch([640], [5000], 1, density=(1.0, 1.0))
    assert worst_error(batch, 0, every=5) <= LIMIT[torch.bfloat16]


def test_strided_queries_as_sglang_passes_them() -> None:
    batch = bf16_batch([0], [3000], 2)
    dense, wide = torch.empty_like(batch.q), torch.zeros(3000, 12, 128, dtype=torch.bfloat16, device=DEVICE)
    run = functools.partial(batch.prefill.run, batch.step, 0)
    run(batch.q, batch.k_pool, batch.v_pool, batch.sm_scale, dense)
    wide[:, :8] = batch.q
    out = torch.empty_like(batch.q)
    run(wide[:, :8], batch.k_pool, batch.v_pool, batch.sm_scale, out)
    assert torch.equal(out, dense)


def test_same_input_same_bytes() -> None:
    batch = bf16_batch([0, 100], [9000, 3000], 3)
    outs = [torch.empty_like(batch.q) for _ in range(5)]
    for out in outs:
        batch.prefill.run(batch.step, 0, batch.q, batch.k_pool, batch.v_pool, batch.sm_scale, out)
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


def test_what_the_kernel_would_misread_is_refused() -> None:
    batch = bf16_batch([0], [300], 4)
    run = functools.partial(batch.prefill.run, batch.step, 0)
    out = torch.empty_like(batch.q)
    with pytest.raises(ValueError, match=r"expected torch\.bfloat16"):
        run(batch.q.half(), batch.k_pool, batch.v_pool, 0.1, out)
    wide = torch.zeros(300, 8, 132, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match="aligned"):
        run(wide[:, :, :128], batch.k_pool, batch.v_pool, 0.1, out)
    with pytest.raises(ValueError, match="one stride"):
        run(batch.q, batch.k_pool, batch.v_pool.repeat(1, 2, 1)[:, ::2], 0.1, out)
