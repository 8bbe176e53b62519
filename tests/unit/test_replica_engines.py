# SPDX-License-Identifier: Apache-2.0
"""With copies of KV groups, ranks together compute what one rank does alone, whichever engine runs the step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import test_step_monitor
import torch
from paged_attention import TorchPagedAttention
from test_paged_engine import SPARSE_IS_FREE, make_batch
from test_sparse_prefill import DIM, GROUP, HEADS, LAYERS, make_plan

from shplb import rank_speeds
from shplb.kernels.copies import weigh_copies
from shplb.plan import ServingPlan
from shplb.rank_speeds import RankSpeeds
from shplb.sglang import step_monitor
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.paged_engine import PagedEngine
from shplb.sglang.step_monitor import StepMonitor
from shplb.sglang.torch_engine import TorchEngine
from shplb.sglang.trace import read_trace

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real kernel")


class Event(test_step_monitor.Event):
    """Everything on a GPU takes as long as its rank's ``tick``."""

    tick = 0.0

    def record(self) -> None:
        test_step_monitor.Event.now += Event.tick
        super().record()


OWN_ORDER = np.tile(np.arange(2, dtype=np.int32), (LAYERS, 1))


def plans() -> tuple[ServingPlan, ServingPlan]:
    """The same budgets on one rank, and on two that both hold both groups."""
    whole = msgspec.structs.replace(make_plan(3, 192), physical_to_logical=OWN_ORDER)
    copied = {"tp_size": 2, "replicas": 1, "physical_to_logical": np.tile(OWN_ORDER, (1, 2))}
    return whole, msgspec.structs.replace(whole, **copied)


def engine_of(
    kind: type, plan: ServingPlan, rank: int, table: torch.Tensor, folder: Path | None,
    monitor: StepMonitor | None = None,
) -> TorchEngine | PagedEngine:  # fmt: skip
    if kind is TorchEngine:
        return TorchEngine(plan, rank, 4096, table, folder)
    monitor = monitor or StepMonitor(LAYERS, lambda value: [value], 0)
    return PagedEngine(plan, rank, 4096, table, TorchPagedAttention(), folder, 64, SPARSE_IS_FREE, monitor)


@pytest.mark.parametrize("kind", [TorchEngine, PagedEngine])
@pytest.mark.parametrize(("prefix", "new"), [([0], [900]), ([640, 0], [333, 700])])
def test_two_ranks_add_up_to_one(kind: type, prefix: list[int], new: list[int], tmp_path: Path) -> None:
    batch, table, k_pool, v_pool = make_batch(prefix, new, sum(new))
    q = torch.randn(sum(new), HEADS, DIM, generator=torch.Generator().manual_seed(1)) * 2
    whole, copied = plans()
    outs, lists = [], []
    for index, (plan, rank) in enumerate([(whole, 0), (copied, 0), (copied, 1)]):
        folder = tmp_path / str(index)
        folder.mkdir()
        STEP_COUNTERS.start(plan.tp_size)
        engine = engine_of(TorchEngine if plan is whole else kind, plan, rank, table, folder)
        route = engine.begin(batch)
        assert route is not None
        assert route.dense is None
        out = torch.full((LAYERS, *q.shape), float("nan"))
        for layer in range(LAYERS):
            engine.run(q, k_pool, v_pool, layer, DIM**-0.5, out[layer])
        outs.append(out)
        lists.append(read_trace(next(folder.iterdir())))
        assert len(STEP_COUNTERS.report()["rank_loads"]) == plan.tp_size
    # As o_proj does with halved columns; each output comes from one rank, so nothing is rounded.
    torch.testing.assert_close((outs[1] + outs[2]) / 2, outs[0], atol=1e-4, rtol=1e-4)
    assert ((outs[1] == 0) | (outs[2] == 0)).all()
    assert not lists[1].keys() & lists[2].keys()
    assert (lists[1] | lists[2]).keys() == lists[0].keys()
    for key, (pages, _) in (lists[1] | lists[2]).items():
        np.testing.assert_array_equal(pages, lists[0][key][0])
    for part in lists[1:]:
        assert 0.3 < len(part) / len(lists[0]) < 0.7


def test_feedback_moves_work_from_the_slower_rank_and_changes_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_monitor.torch.cuda, "Event", Event)
    monkeypatch.setattr(rank_speeds, "LEAST_LAYER_NS", 0)  # steps are short here, and timed by this test
    batch, table, k_pool, v_pool = make_batch([0], [900], 900)
    q = torch.randn(900, HEADS, DIM, generator=torch.Generator().manual_seed(1)) * 2
    took = (1.0, 1.25)  # ms, of all that is timed on a rank

    def gather_of(rank: int) -> Callable[[Any], list[Any]]:
        def both(value: Any) -> list[Any]:
            checksum, times = value
            return [(checksum, None if times is None else times * (other / took[rank])) for other in took]

        return both

    STEP_COUNTERS.start(2)
    engines, last = [], LAYERS - 1
    for rank in (0, 1):
        monitor = StepMonitor(LAYERS, gather_of(rank), 1, RankSpeeds(2))
        engines.append(engine_of(PagedEngine, plans()[1], rank, table, None, monitor))
        monkeypatch.setattr(engines[rank].prefill, "select", lambda *rest: None)  # Triton's interpreter is slow
        monkeypatch.setattr(engines[rank].prefill, "attend", lambda *rest: None)
    out = torch.full((2, *q.shape), float("nan"))
    blocks = []
    for _ in range(16):
        for rank, engine in enumerate(engines):
            assert engine.begin(batch) is not None
            monkeypatch.setattr(Event, "tick", took[rank])
            for layer in range(LAYERS):
                engine.run(q, k_pool, v_pool, layer, DIM**-0.5, out[rank])
        blocks.append([int(np.ptp(engine._step.plan.owned_blocks, axis=2).sum()) for engine in engines])
    assert sum(blocks[0]) == sum(blocks[-1])
    assert blocks[-1][1] < 0.95 * blocks[0][1]
    monkeypatch.undo()
    for rank, engine in enumerate(engines):
        engine.prefill.run(engine._step, last, q, k_pool, v_pool, DIM**-0.5, out[rank])
    alone, whole = TorchEngine(plans()[0], 0, 4096, table, None), torch.empty_like(q)
    assert alone.begin(batch) is not None
    alone.run(q, k_pool, v_pool, last, DIM**-0.5, whole)
    torch.testing.assert_close(out.sum(dim=0) / 2, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lists_per_head", [1, GROUP])
def test_weigh_copies(lists_per_head: int) -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(300, HEADS, DIM, generator=generator)
    out[192:] = float("nan")  # never written
    before = out.clone()
    list_heads = HEADS // lists_per_head
    copied = (torch.arange(list_heads) % 2).to(torch.uint8)
    owned = torch.tensor([[0, 1]] * list_heads, dtype=torch.int32)
    weigh_copies(
        out, copied, owned, torch.tensor([0, 192], dtype=torch.int32), torch.tensor([192, 108], dtype=torch.int32)
    )
    for head in range(HEADS):
        if copied[head // lists_per_head]:
            assert torch.equal(out[:192, head], 2 * before[:192, head])
            assert (out[192:, head] == 0).all()
        else:
            torch.testing.assert_close(out[:, head], before[:, head], equal_nan=True, rtol=0, atol=0)
