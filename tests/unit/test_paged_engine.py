# SPDX-License-Identifier: Apache-2.0
"""The GPU's way through a step, with Triton's interpreter and a stand-in kernel: equals the torch path of the CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from paged_attention import TorchPagedAttention
from test_sparse_prefill import DIM, HEADS, KV_HEADS, LAYERS, make_plan

from shplb.plan import ServingPlan
from shplb.planner import CostModel
from shplb.policies import POLICIES
from shplb.sglang.backend import SparsePrefillMixin
from shplb.sglang.batches import sub_batch
from shplb.sglang.environment import SPARSE_AT_ANY_PRICE
from shplb.sglang.metadata import StepBudgets
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.paged_engine import PagedEngine
from shplb.sglang.parts import Parts, RequestIds
from shplb.sglang.step_monitor import StepMonitor
from shplb.sglang.tokens import token_slots
from shplb.sglang.torch_engine import TorchEngine
from shplb.sglang.torch_prefill import TorchPrefill
from shplb.sglang.trace import read_trace

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real kernel")


def make_batch(prefix: list[int], new: list[int], seed: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(forward batch, req_to_token, k_pool, v_pool); pages of 64 follow each other within a request only."""
    generator = torch.Generator().manual_seed(seed)
    lens = [p + n for p, n in zip(prefix, new, strict=True)]
    pages = [-(-n // 64) for n in lens]
    order = (torch.randperm(sum(pages), generator=generator) + 1).split(pages)
    table = torch.zeros(len(lens) + 1, max(pages) * 64, dtype=torch.int32)
    for row, own in enumerate(order):
        table[row + 1, : len(own) * 64] = (own[:, None] * 64 + torch.arange(64)).reshape(-1)
    batch = SimpleNamespace(
        batch_size=len(lens),
        rids=[f"r{index}" for index in range(len(lens))],
        extend_prefix_lens_cpu=prefix,
        extend_seq_lens_cpu=new,
        extend_prefix_lens=torch.tensor(prefix),
        extend_seq_lens=torch.tensor(new),
        seq_lens=torch.tensor(lens),
        seq_lens_cpu=torch.tensor(lens),
        req_pool_indices=torch.arange(1, len(lens) + 1),
        out_cache_loc=torch.zeros(sum(new), dtype=torch.int64),
        forward_mode=SimpleNamespace(is_extend_without_speculative=lambda: True),
    )
    k_pool, v_pool = torch.randn(2, (sum(pages) + 1) * 64, KV_HEADS, DIM, generator=generator)
    return batch, table, k_pool, v_pool


SPARSE_IS_FREE = CostModel(
    item_ns=0, kv_tile_ns=1, dense_kv_tile_ns=3000, select_pair_ps=0, select_block_ps=0, pool_page_ps=0, layer_ns=0
)


def engine_of(kind: type, table: torch.Tensor, folder: Path | None = None) -> Any:
    if kind is TorchEngine:
        return TorchEngine(make_plan(3, 192), 0, 4096, table, folder)
    # On so short a step the true costs would send all requests to the base.
    return paged_engine(table, SPARSE_IS_FREE, folder)


def paged_engine(
    table: torch.Tensor, cost: CostModel, folder: Path | None = None, plan: ServingPlan | None = None
) -> PagedEngine:
    monitor = StepMonitor(LAYERS, lambda value: [value], 0)
    return PagedEngine(plan or make_plan(3, 192), 0, 4096, table, TorchPagedAttention(), folder, 64, cost, monitor)


@pytest.mark.parametrize(("prefix", "new"), [([0], [900]), ([640, 0], [333, 700])])
def test_both_engines_agree(prefix: list[int], new: list[int], tmp_path: Path) -> None:
    batch, table, k_pool, v_pool = make_batch(prefix, new, sum(new))
    q = torch.randn(sum(new), HEADS, DIM, generator=torch.Generator().manual_seed(1)) * 2
    outs = []
    for kind in (TorchEngine, PagedEngine):
        STEP_COUNTERS.start(1)
        folder = tmp_path / kind.__name__
        folder.mkdir()
        engine = engine_of(kind, table, folder)
        route = engine.begin(batch)
        assert route is not None
        assert route.dense is None
        outs.append(torch.full_like(q, float("nan")))
        for layer in range(LAYERS):
            engine.run(q, k_pool, v_pool, layer, DIM**-0.5, outs[-1])
        assert STEP_COUNTERS.sparse_steps == 1
        assert 0 < STEP_COUNTERS.computed <= STEP_COUNTERS.causal
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=1e-4)
    mine, theirs = (read_trace(next((tmp_path / kind).iterdir())) for kind in ("PagedEngine", "TorchEngine"))
    assert mine.keys() == theirs.keys()
    for key, (pages, scores) in mine.items():
        np.testing.assert_array_equal(pages, theirs[key][0])
        np.testing.assert_allclose(scores, theirs[key][1], atol=2e-5, rtol=5e-3)


@pytest.mark.parametrize("name", ["xattention", "streaming_llm", "minference"])
def test_both_engines_agree_on_other_policies(name: str) -> None:
    batch, table, k_pool, v_pool = make_batch([640, 0], [133, 500], 4)
    q = torch.randn(633, HEADS, DIM, generator=torch.Generator().manual_seed(1)) * 2
    usual = make_plan(3, 192)
    other = msgspec.structs.replace(usual, rule=POLICIES[name].rule(usual.rule))

    def step(engine: Any) -> tuple[torch.Tensor, int]:
        """Its output, and what it counts as computed; on a GPU that is known at the next step."""
        STEP_COUNTERS.start(1)
        assert engine.begin(batch) is not None
        out = torch.full_like(q, float("nan"))
        for layer in range(LAYERS):
            engine.run(q, k_pool, v_pool, layer, DIM**-0.5, out)
        if isinstance(engine, PagedEngine):
            engine.begin(batch)
        return out, STEP_COUNTERS.computed

    outs = []
    for make in (lambda p: TorchEngine(p, 0, 4096, table, None), lambda p: paged_engine(table, SPARSE_IS_FREE, plan=p)):
        (_, planned), (out, computed) = step(make(usual)), step(make(other))
        assert (computed != planned) == (POLICIES[name].choice == "top_p")
        outs.append(out)
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=1e-4)


class Base:
    """A base backend that notes what it was given and answers with ones."""

    def __init__(self, engine: Any, table: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor) -> None:
        self.seen: list[Any] = []
        self.shplb_engine = engine
        self.req_to_token_pool = SimpleNamespace(req_to_token=table)
        self.token_to_kv_pool = SimpleNamespace(
            get_key_buffer=lambda layer: k_pool, get_value_buffer=lambda layer: v_pool
        )

    def init_forward_metadata(self, batch: Any) -> None:
        self.seen.append(batch)

    def forward_extend(self, q: Any, k: Any, v: Any, layer: Any, batch: Any, save: bool = True) -> torch.Tensor:
        self.seen.append((q.shape, k.shape, batch, save))
        return torch.ones(q.shape)


class Backend(SparsePrefillMixin, Base):
    pass


LAYER = SimpleNamespace(
    is_cross_attention=False, tp_q_head_num=HEADS, qk_head_dim=DIM, v_head_dim=DIM, layer_id=1, scaling=DIM**-0.5
)


def test_mixed_batches_are_shared_with_the_base() -> None:
    prefix, new = [0, 2000, 640], [900, 1, 500]
    batch, table, k_pool, v_pool = make_batch(prefix, new, 5)
    engine = paged_engine(table, SPARSE_IS_FREE)
    backend = Backend(engine, table, k_pool, v_pool)
    q = torch.randn(sum(new), HEADS * DIM, generator=torch.Generator().manual_seed(2)) * 2
    kv = torch.zeros(sum(new), KV_HEADS, DIM)
    backend.init_forward_metadata(batch)
    out = backend.forward_extend(q, kv, kv, LAYER, batch, save_kv_cache=False)
    part, (q_shape, k_shape, again, save) = backend.seen
    assert part is again
    assert not save
    assert (part.extend_seq_lens_cpu, part.extend_prefix_lens_cpu) == ([1], [2000])
    assert part.req_pool_indices.tolist() == [2]
    assert part.seq_lens.tolist() == part.seq_lens_cpu.tolist() == [2001]
    assert (q_shape, k_shape) == ((1, HEADS * DIM), (1, KV_HEADS, DIM))
    assert torch.all(out[900] == 1)
    rest = torch.cat([out[:900], out[901:]])
    assert torch.isfinite(rest).all()
    assert not torch.any(torch.all(rest == 1, dim=1))


@pytest.mark.parametrize("choice", ["top_k", "top_p"])
@pytest.mark.parametrize(("prefix", "new"), [([0], [900]), ([640, 0, 1000], [333, 700, 60])])
def test_tails_belong_to_the_base_and_hold_every_page(prefix: list[int], new: list[int], choice: str) -> None:
    batch, table, k_pool, v_pool = make_batch(prefix, new, sum(new))
    q = torch.randn(sum(new), HEADS, DIM, generator=torch.Generator().manual_seed(1)) * 2
    kv = torch.zeros(sum(new), KV_HEADS, DIM)
    plan = make_plan(3, 192, dense_tail_tokens=100, choice=choice, coverage=0.5)
    batch.rids = RequestIds(batch.rids, batch.seq_lens.tolist())
    ours = TorchEngine(plan, 0, 4096, table, None)
    assert ours.begin(batch) is not None
    expected = torch.full_like(q, float("nan"))
    ours.run(q, k_pool, v_pool, LAYER.layer_id, LAYER.scaling, expected)
    backend = Backend(paged_engine(table, SPARSE_IS_FREE, plan=plan), table, k_pool, v_pool)
    backend.init_forward_metadata(batch)
    out = backend.forward_extend(q.flatten(1), kv, kv, LAYER, batch, save_kv_cache=False).view_as(q)
    part, row = backend.seen[0], 0
    starts = dict(zip(part.rids, part.extend_prefix_lens_cpu, strict=True))
    slots = token_slots(table, batch.req_pool_indices, batch.seq_lens.tolist())
    everything = StepBudgets(plan.budget_table(4096), prefix, new, [True] * len(new))
    dense = TorchPrefill(plan.rule, [list(range(HEADS))] * LAYERS).run(
        q, k_pool, v_pool, slots, everything, LAYER.layer_id, LAYER.scaling
    )
    for index, (cached, fresh) in enumerate(zip(prefix, new, strict=True)):
        start, end = max((cached + fresh - 100) // 192 * 192, cached), row + fresh
        assert starts[f"r{index}"] == start
        cut = row + start - cached
        torch.testing.assert_close(out[row:cut], expected[row:cut], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(expected[cut:end], dense[cut:end])
        assert torch.all(out[cut:end] == 1)  # the base's answer
        assert start == cached or not torch.allclose(expected[row:cut], dense[row:cut])
        row = end


def test_earlier_chunks_of_a_prompt_have_no_tail() -> None:
    batch, table, *_ = make_batch([0], [900], 3)
    plan = make_plan(3, 192, dense_tail_tokens=100)
    for to_come, tail in ((5000, 0), (60, 132), (0, 132)):
        batch.rids = RequestIds(batch.rids, [900 + to_come])
        route = paged_engine(table, SPARSE_IS_FREE, plan=plan).begin(batch)
        assert route is not None
        assert (0 if route.dense is None else route.dense.batch.extend_num_tokens) == tail


def test_short_steps_belong_to_the_base() -> None:
    batch, table, k_pool, v_pool = make_batch([0, 64], [300, 200], 8)
    STEP_COUNTERS.start(1)
    backend = Backend(paged_engine(table, CostModel()), table, k_pool, v_pool)
    backend.init_forward_metadata(batch)
    assert backend.seen == [batch]
    assert backend.shplb_route is None
    assert STEP_COUNTERS.dense_steps == 1


def test_forced_paths_leave_single_tokens_alone() -> None:
    prefix, new = [0, 2000, 640, 3000], [2, 1, 500, 64]
    batch, table, _, _ = make_batch(prefix, new, 6)
    plan = make_plan(3, 192)
    plan = msgspec.structs.replace(plan, budgets=np.ones_like(plan.budgets))
    paged = paged_engine(table, SPARSE_AT_ANY_PRICE, plan=plan)
    route = paged.begin(batch)
    assert route is not None
    assert route.dense is not None
    assert route.dense.batch.extend_seq_lens_cpu == [1]
    assert TorchEngine(plan, 0, 4096, table, None).begin(batch) is None
    assert TorchEngine(plan, 0, 4096, table, None, forced=True).begin(batch) is not None
    single, table, _, _ = make_batch([640], [1], 7)
    assert paged.begin(single) is None
    assert TorchEngine(plan, 0, 4096, table, None, forced=True).begin(single) is None


def test_dummy_batches_belong_to_the_base() -> None:
    batch, table, k_pool, v_pool = make_batch([0], [900], 6)
    batch.rids = None
    batch.extend_seq_lens_cpu, batch.extend_prefix_lens_cpu = torch.tensor([900]), torch.tensor([0])
    backend = Backend(engine_of(PagedEngine, table), table, k_pool, v_pool)
    backend.init_forward_metadata(batch)
    assert backend.seen == [batch]


def test_sub_batch_leaves_the_batch_alone() -> None:
    batch, *_ = make_batch([0, 64], [10, 20], 7)
    batch._attn_output = "whole"
    part = sub_batch(batch, Parts([1], [70], [14], [True]))
    assert (part.batch_size, part.extend_num_tokens, part.seq_lens_sum, part.rids) == (1, 14, 84, ["r1"])
    assert (part.extend_prefix_lens_cpu, part.extend_seq_lens_cpu) == ([70], [14])
    on_device = part.extend_prefix_lens, part.extend_seq_lens, part.seq_lens
    assert [lens.tolist() for lens in on_device] == [[70], [14], [84]]
    assert part._attn_output is None
    assert (batch.batch_size, batch._attn_output, batch.extend_seq_lens_cpu) == (2, "whole", [10, 20])


def test_a_chunk_without_tokens_is_a_dense_step_that_counts() -> None:
    batch, table, k_pool, v_pool = make_batch([0, 64], [900, 200], 9)
    batch.extend_seq_lens_cpu = [900, 0]
    STEP_COUNTERS.start(1)
    backend = Backend(engine_of(PagedEngine, table), table, k_pool, v_pool)
    backend.init_forward_metadata(batch)
    assert backend.seen == [batch]
    assert (STEP_COUNTERS.dense_steps, STEP_COUNTERS.sparse_steps) == (1, 0)
