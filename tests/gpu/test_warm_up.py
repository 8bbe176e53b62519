# SPDX-License-Identifier: Apache-2.0
"""What the start compiles is what prompts run: no first long prompt waits for a compiler."""

import msgspec
import numpy as np
import pytest
import torch
from paged_batch import DEVICE

from shplb.kernels import page_mass, pooling, self_check, top_pages
from shplb.kernels.flashinfer_sm90 import Sm90Prefill
from shplb.kernels.paged_prefill import PagedPrefill
from shplb.planner import StepPlanner
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule

HEADS, KV_HEADS, HEAD_DIM, TOKENS = 16, 4, 128, 40000
KERNELS = (
    pooling._pool_keys_kernel, pooling._pool_queries_kernel, page_mass._softmax_statistics_kernel,
    page_mass._page_mass_kernel, top_pages._top_pages_kernel,
)  # fmt: skip


def compiled() -> int:
    return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in KERNELS)


@pytest.mark.parametrize("table_width", [TOKENS, 131073])
def test_nothing_compiles_after_the_start(table_width: int) -> None:
    rule = SparsityRule(query_block=128)
    kernel = Sm90Prefill(torch.bfloat16, HEAD_DIM, DEVICE)
    self_check.check_sparse_step(kernel, rule, HEADS, KV_HEADS)
    self_check.warm_up_widths(rule, HEADS, TOKENS, DEVICE)
    before = compiled()
    assert before >= len(KERNELS)

    everywhere = msgspec.structs.replace(rule, dense_below_tokens=0)
    keep = BudgetTable(np.full((1, HEADS, 1), 0.2), np.array([PAGE_SIZE]), everywhere, TOKENS).pages
    slots = np.arange(KV_HEADS, dtype=np.int32).reshape(1, 1, -1)
    planner = StepPlanner(
        num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, keep_pages=keep, slot_groups=slots, rank=0, num_ctas=kernel.num_ctas
    )
    prefill = PagedPrefill(planner, kernel, rule, num_list_heads=HEADS, group_size=HEADS // KV_HEADS, device=DEVICE)
    # As in SGLang: q is a slice of the fused projection, the tables are as wide as the context.
    pool = torch.randn(((TOKENS // PAGE_SIZE + 1) * PAGE_SIZE, KV_HEADS, HEAD_DIM), device=DEVICE, dtype=torch.bfloat16)
    table = torch.zeros((3, table_width), dtype=torch.int32, device=DEVICE)
    table[:, :TOKENS] = torch.arange(TOKENS, device=DEVICE)
    for prefix, new in [
        ([0], [5000]),
        ([64, 128], [130, 2500]),
        ([TOKENS - 4096], [4096]),
        ([64], [200]),
        ([0], [TOKENS]),
    ]:
        fused = torch.randn((sum(new), HEADS + 2 * KV_HEADS, HEAD_DIM), device=DEVICE, dtype=torch.bfloat16)
        indices = torch.arange(len(new), device=DEVICE)
        lens = torch.tensor([p + n for p, n in zip(prefix, new, strict=True)], device=DEVICE)
        step = prefill.begin_step(prefix, new, table, indices, lens, "sparse")
        assert step is not None
        q = fused[:, :HEADS]
        prefill.run(step, 0, q, pool, pool, HEAD_DIM**-0.5, torch.empty(q.shape, dtype=q.dtype, device=DEVICE))
    torch.cuda.synchronize()
    assert compiled() == before
