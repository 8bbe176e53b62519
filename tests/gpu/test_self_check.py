# SPDX-License-Identifier: Apache-2.0
"""The self-check at start passes on a good build, and fails closed on a changed layout or wrong output."""

from typing import Any

import pytest
import torch
from paged_batch import DEVICE

from shplb.kernels import self_check
from shplb.kernels.flashinfer_sm90 import KernelUnavailableError, Sm90Prefill
from shplb.sparsity import SparsityRule, query_block_size

SHAPES = [(128, 16, 4), (64, 9, 3), (128, 7, 1)]  # head_dim, query heads, KV heads


@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), SHAPES)
def test_a_good_build_passes(head_dim: int, heads: int, kv_heads: int) -> None:
    kernel = Sm90Prefill(torch.bfloat16, head_dim, DEVICE)
    rule = SparsityRule(query_block=query_block_size(head_dim))
    self_check.check_layout(kernel)
    self_check.check_sparse_step(kernel, rule, heads, kv_heads)
    self_check.warm_up_widths(rule, heads, 131072, DEVICE)


def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Sm90Prefill(torch.bfloat16, 128, DEVICE)
    theirs = self_check.plan_of_flashinfer

    def swapped(*args: Any, **kwargs: Any) -> Any:
        buffer, info = theirs(*args, **kwargs)
        info[1], info[2] = info[2], info[1]
        return buffer, info

    monkeypatch.setattr(self_check, "plan_of_flashinfer", swapped)
    with pytest.raises(KernelUnavailableError, match="lays out its plan in another way"):
        self_check.check_layout(kernel)


def test_wrong_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Sm90Prefill(torch.bfloat16, 128, DEVICE)
    run = kernel.run

    def wrong(q: torch.Tensor, *args: Any) -> None:
        run(q * 1.1, *args)

    monkeypatch.setattr(kernel, "run", wrong)
    with pytest.raises(KernelUnavailableError, match="differs from dense attention"):
        self_check.check_sparse_step(kernel, SparsityRule(query_block=128), 4, 2)
