# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's public wrapper, forced on a GPU that has the sm90 kernel: the same results from the same lists."""

import functools

import pytest
import torch
from paged_batch import DEVICE, make_batch
from test_sm90_prefill import LIMIT, kernel, worst_error

from shplb.kernels.flashinfer_public import PublicPrefill
from shplb.kernels.self_check import check_sparse_step
from shplb.sparsity import SparsityRule, query_block_size


@functools.cache
def public(dtype: torch.dtype, head_dim: int) -> PublicPrefill:
    return PublicPrefill(dtype, head_dim, DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "group", "kv_heads"), [(64, 3, 3), (128, 4, 2), (128, 7, 1)])
@pytest.mark.parametrize("shared_lists", [False, True])
def test_equals_dense_with_a_mask(
    dtype: torch.dtype, head_dim: int, group: int, kv_heads: int, shared_lists: bool
) -> None:
    batch = make_batch(
        [0, 640, 64], [3001, 257, 1], head_dim=head_dim, group=group, kv_heads=kv_heads, seed=group, dtype=dtype,
        shared_lists=shared_lists, attention=public(dtype, head_dim),
    )  # fmt: skip
    for layer in range(2):
        assert worst_error(batch, layer, every=3) <= LIMIT[dtype]


def test_equals_the_sm90_kernel_many_layers_ahead() -> None:
    """More layers than wrappers, without a wait: each must see its own plan and its own lists."""
    dtype = torch.bfloat16
    made = [
        make_batch([0, 100], [9000, 3000], head_dim=128, group=4, kv_heads=2, seed=3, dtype=dtype, attention=attention)
        for attention in (kernel(dtype, 128), public(dtype, 128))
    ]
    outs: list[list[torch.Tensor]] = [[], []]
    for batch, found in zip(made, outs, strict=True):
        for turn in range(12):
            found.append(torch.full_like(batch.q, float("nan")))
            batch.prefill.run(batch.step, turn % 2, batch.q, batch.k_pool, batch.v_pool, batch.sm_scale, found[-1])
    for ours, theirs in zip(*outs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_the_start_proves_it() -> None:
    check_sparse_step(public(torch.bfloat16, 128), SparsityRule(query_block=query_block_size(128)), 16, 4)
