# SPDX-License-Identifier: Apache-2.0
"""The stated GPU memory of a step against what its tensors take, and its place in what people read."""

from typing import Any

import pytest
import torch
from synthetic import make_serving_plan
from test_paged_engine import SPARSE_IS_FREE, make_batch, paged_engine
from test_sparse_prefill import HEADS, make_plan
from torch.utils._python_dispatch import TorchDispatchMode

from shplb.model import ModelShape
from shplb.step_memory import StepMemory, memory_text


class Allocations(TorchDispatchMode):
    """Bytes of everything that torch.empty gave."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default):
            self.bytes += out.nbytes
        return out


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in kernel is for CPUs")
def test_as_much_as_the_tensors_of_a_step_take() -> None:
    prefix, new = [1920], [1152]
    batch, table, k_pool, _ = make_batch(prefix, new, 1)
    engine = paged_engine(table, SPARSE_IS_FREE)
    q = torch.randn(sum(new), HEADS, k_pool.shape[-1])
    with Allocations() as of_step:
        assert engine.begin(batch) is not None
    with Allocations() as of_layer:
        engine.prefill.select(engine._step, 0, q, k_pool, 0.1)  # type: ignore[arg-type]
    stated = StepMemory.of(make_plan(3, 192), new[0], prefix[0] + new[0])
    lists = engine._step.page_indices.nbytes  # type: ignore[union-attr]
    assert lists <= stated.lists
    assert of_layer.bytes == pytest.approx(stated.scores + stated.pooled, rel=0.1)
    assert stated.tables / 2 < engine._step.plan.num_bytes <= stated.tables  # type: ignore[union-attr]
    assert of_step.bytes >= lists


def test_llama_8b_on_two_gpus() -> None:
    """Scores are 64 blocks x 16 heads x 2048 pages x 4 bytes; all together it is less than 2 % of a pool of 60 GB."""
    plan = make_serving_plan(ModelShape("LlamaForCausalLM", 32, 32, 8, 128, 4096), tp_size=2)
    memory = StepMemory.of(plan, 8192, 131072)
    assert memory.scores == 64 * 16 * 2048 * 4
    assert memory.total < 0.02 * 60e9
    text = memory_text(plan, 131072)
    assert f"{memory.total / 2**20:.3g} MiB per rank in chunks of 8192 on 131072 tokens" in text
    assert StepMemory.of(plan, 8192, 65536).total < memory.total < StepMemory.of(plan, 16384, 131072).total
    assert "in chunks of 3072 on 3072 tokens" in memory_text(plan, 3072)
