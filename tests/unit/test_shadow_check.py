# SPDX-License-Identifier: Apache-2.0
"""What a shadow check finds against dense attention; when it runs, what ranks add up to, and what is exported."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from paged_attention import TorchPagedAttention
from test_paged_engine import SPARSE_IS_FREE, make_batch
from test_prometheus import exported, key, run_rank
from test_sparse_prefill import DIM, HEADS, KV_HEADS, LAYERS, make_plan

from shplb.kernels.shadow import shadow_rows
from shplb.plan import ServingPlan
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.paged_engine import PagedEngine
from shplb.sglang.parts import RequestIds
from shplb.sglang.shadow_check import ShadowCheck
from shplb.sglang.shadow_means import ShadowMeans
from shplb.sglang.step_monitor import StepMonitor
from shplb.sglang.torch_engine import TorchEngine

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real kernel")
SCALE = DIM**-0.5


def shadowed_plan(recovery: float | None = None, **rule: Any) -> ServingPlan:
    plan = make_plan(3, 192, **rule)
    return plan if recovery is None else msgspec.structs.replace(plan, recovery=np.full(plan.budgets.shape, recovery))


def run_step(kind: type, plan: ServingPlan) -> dict[str, Any]:
    """The report after a checked step of two requests, collected when the next one begins."""
    batch, table, k_pool, v_pool = make_batch([320, 0], [133, 300], 5)
    batch.rids = RequestIds(batch.rids, batch.seq_lens.tolist())
    q = torch.randn(433, HEADS, DIM, generator=torch.Generator().manual_seed(1)) * 2
    STEP_COUNTERS.start(1)
    shadow = ShadowCheck(plan, 0, 1, lambda value: [value])
    engine: Any
    if kind is TorchEngine:
        engine = TorchEngine(plan, 0, 4096, table, None, True, shadow)
    else:
        monitor = StepMonitor(LAYERS, lambda value: [value], 0)
        engine = PagedEngine(
            plan, 0, 4096, table, TorchPagedAttention(), None, 64, SPARSE_IS_FREE, monitor, shadow
        )  # type: ignore[arg-type]  # fmt: skip
    assert engine.begin(batch) is not None
    for layer in range(LAYERS):
        engine.run(q, k_pool, v_pool, layer, SCALE, torch.empty_like(q))
    assert engine.begin(batch) is not None
    return STEP_COUNTERS.report()


def test_rows_equal_dense_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 300, 2, DIM, generator=generator)
    q, out = torch.randn(2, 5, 6, DIM, generator=generator)
    rows, kept = torch.tensor([256, 270, 271, 298, 299]), torch.rand(6, 5, generator=generator) < 0.6
    kept[4] = False
    found = shadow_rows(q, k, v, out, rows, kept, SCALE)
    for head in range(6):
        logits = q[:, head].double() @ k[:, head // 3].double().T * SCALE
        weights = torch.softmax(logits.masked_fill(torch.arange(300)[None] > rows[:, None], -torch.inf), -1)
        dense = weights @ v[:, head // 3].double()
        mine = weights[:, kept[head].repeat_interleave(64)[:300]].sum(dim=1).mean()
        expected = [mine, (out[:, head] - dense).square().sum(), dense.square().sum(), float(head != 4)]
        np.testing.assert_allclose(found[head], np.array(expected), rtol=1e-4, atol=1e-6)


@on_cpu
@pytest.mark.parametrize("tail", [0, 20])  # with a tail, one block is left that loses anything
def test_both_engines_find_the_same(tail: int) -> None:
    plan = shadowed_plan(0.5, dense_tail_tokens=tail)
    torch_way, paged_way = (run_step(kind, plan) for kind in (TorchEngine, PagedEngine))
    assert torch_way["shadow_checks"] == paged_way["shadow_checks"] == 1
    for name in ("shadow_lost_mass", "shadow_output_error", "shadow_mass_drift"):
        np.testing.assert_allclose(torch_way[name], paged_way[name], atol=1e-4)
    lost, drift = np.array(torch_way["shadow_lost_mass"]), np.array(torch_way["shadow_mass_drift"])
    assert np.all((lost > 0.01) & (lost < 0.9))
    np.testing.assert_allclose(drift, 1.0 - lost - 0.5, atol=1e-6)
    assert all(0.01 < error < 2.0 for error in torch_way["shadow_output_error"])


@pytest.mark.parametrize("choice", ["top_p", "a_shape"])
def test_steps_with_all_pages_lose_nothing(choice: str) -> None:
    plan = shadowed_plan(choice=choice, coverage=1.0, floor_pages=64)
    report = run_step(TorchEngine, plan)
    np.testing.assert_allclose(report["shadow_lost_mass"], 0.0, atol=1e-5)
    np.testing.assert_allclose(report["shadow_output_error"], 0.0, atol=1e-4)
    assert report["shadow_mass_drift"] is None, "the plan does not hold what was recovered"


def test_one_step_in_many_is_checked_and_collected_before_the_next() -> None:
    asked: list[int] = []
    plan = shadowed_plan()
    check = ShadowCheck(plan, 0, 20, lambda value: (asked.append(step), [value])[1])  # type: ignore[func-returns-value]
    checked = []
    for step in range(1, 61):
        check.begin_step(step % 3 > 0 or step > 30)  # dense steps between them don't count
        if check.active:
            checked.append(step)
            check._result = torch.zeros(LAYERS, HEADS, 4), None
    assert checked == [29, 50]
    assert asked == [38, 58]
    idle = ShadowCheck(plan, 0, 0, lambda value: [value])
    idle.begin_step(True)
    assert not idle.active


def test_ranks_add_up_and_check_the_same_rows() -> None:
    from shplb.sglang.metadata import cut_query_blocks

    plan = msgspec.structs.replace(shadowed_plan(0.8), tp_size=2)
    blocks = cut_query_blocks([0, 640], [900, 1], 192)
    sums: list[np.ndarray] = []
    for rank in (0, 1):
        check = ShadowCheck(plan, rank, 1, lambda value: sums.append(value) or [value])  # type: ignore[func-returns-value]
        check.begin_step(True)
        chosen = [check.choose(layer, blocks) for layer in range(LAYERS)]
        assert all(each is not None and blocks[each.block].end_row > 256 for each in chosen)
        assert all(each is not None and each.block < 5 for each in chosen), "one row decodes"
        found = torch.tensor([0.6 + 0.2 * rank, 1.0 + rank, 4.0, 1.0]).expand(LAYERS, HEADS // 2, 4).clone()
        found[:, 0, 3] = 0.0  # a head whose blocks another rank computes
        check._result = found, None
        STEP_COUNTERS.start(2)
        check.begin_step(True)
    heads = HEADS // 2 - 1
    np.testing.assert_allclose(sums[0], [[0.6 * heads, heads, 4.0 * heads, 0.8 * heads, heads]] * LAYERS, rtol=1e-6)
    means = ShadowMeans()
    means.add(sums[0] + sums[1])
    np.testing.assert_allclose(means.lost, 0.3, rtol=1e-6)
    np.testing.assert_allclose(means.drift, -0.1, rtol=1e-5)
    np.testing.assert_allclose(means.error, np.sqrt(1.5 / 4.0), rtol=1e-6)


def test_heads_of_padding_are_left_out() -> None:
    plan = shadowed_plan()
    plan = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, inert_kv_heads=(1,)))
    sums = ShadowCheck(plan, 0, 1, lambda value: [value])._sums(np.ones((LAYERS, HEADS, 4)))
    assert sums[:, 4].tolist() == [HEADS // KV_HEADS] * LAYERS


def test_means_follow_what_is_served_now() -> None:
    means = ShadowMeans()
    assert means.report() == {"shadow_checks": 0}
    for lost in [0.1] * 20 + [0.5] * 100:
        means.add(np.array([[1.0 - lost, 0.04, 1.0, np.nan, 1.0]]))
    report = means.report()
    assert report["shadow_lost_mass"] == pytest.approx([0.5], abs=2e-3)
    assert (report["shadow_output_error"], report["shadow_checks"]) == (pytest.approx([0.2]), 120)


def test_prometheus_shows_layers_once_checked(tmp_path: Path) -> None:
    check = "STEP_COUNTERS.add_shadow(np.array([[0.9, 0.01, 1.0, {0}, 1.0], [1.6, 0.04, 1.0, {0}, 2.0]]))"
    run_rank(tmp_path, f"start(0); step(False); {check.format('np.nan')}; {check.format('np.nan')}")
    found = exported(tmp_path)
    assert found[key("shplb_shadow_lost_mass", layer="0")] == pytest.approx(0.1)
    assert found[key("shplb_shadow_lost_mass", layer="1")] == pytest.approx(0.2)
    assert found[key("shplb_shadow_output_error", layer="1")] == pytest.approx(0.2)
    assert not {name for name, _ in found} & {"shplb_shadow_mass_drift"}
    run_rank(tmp_path, f"start(0); {check.format('1.0')}")
    assert exported(tmp_path)[key("shplb_shadow_mass_drift", layer="0")] == pytest.approx(-0.1)
