# SPDX-License-Identifier: Apache-2.0
import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_reference import aligned

from shplb import CostModel, InvalidArgument, plan_work, work_plan_bytes

NAMES = ["qo_tile_indices", "qo_indptr", "kv_indptr", "qo_len", "kv_len", "head", "work_indptr", "batch_indices"]


def make_items(rng: np.random.Generator, num_items: int, head_dim: int = 128) -> dict[str, np.ndarray]:
    tile = 192 if head_dim == 64 else 128
    qo_lens = rng.integers(1, tile + 1, num_items).astype(np.int32)
    kv_lens = np.clip(rng.lognormal(8, 1.2, num_items), 1, 1 << 20).astype(np.int32)
    kv_lens = np.where(rng.random(num_items) < 0.05, 0, np.maximum(kv_lens, qo_lens)).astype(np.int32)
    return {
        "qo_indptr": rng.integers(0, 1 << 20, num_items).astype(np.int32),
        "qo_lens": qo_lens,
        "kv_indptr": rng.integers(0, 1 << 30, num_items).astype(np.int32),
        "kv_lens": kv_lens,
        "head_indices": rng.integers(0, 64, num_items).astype(np.int32),
    }


def run(items: dict[str, np.ndarray], num_ctas: int, **options):
    out = aligned(work_plan_bytes(len(items["kv_lens"]), num_ctas))
    options.setdefault("head_dim", 128)
    plan = plan_work(*items.values(), out, num_ctas=num_ctas, **options)
    return plan, out


def decode(plan, out: np.ndarray, num_items: int, num_ctas: int) -> dict[str, np.ndarray]:
    """The tables as the kernel reads them: int32 at byte offsets."""
    tables = {}
    for name, offset in zip(NAMES, plan.plan_info[:8], strict=True):
        count = num_ctas + 1 if name == "work_indptr" else num_items
        tables[name] = out[offset : offset + 4 * count].view(np.int32)
    return tables


def longest_first(loads: np.ndarray, num_ctas: int) -> int:
    """Makespan of exact longest-first."""
    heap = [0] * num_ctas
    for load in sorted(loads.tolist(), reverse=True):
        heapq.heapreplace(heap, heap[0] + load)
    return max(heap)


def loads_of(kv_lens: np.ndarray, cost: CostModel, kv_tile: int = 96) -> np.ndarray:
    return cost.item_ns + cost.kv_tile_ns * -(-kv_lens.astype(np.int64) // kv_tile)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3000),
    st.sampled_from([1, 2, 7, 132]),
    st.sampled_from([64, 128, 256]),
    st.sampled_from(["auto", "longest_first", "snake"]),
    st.integers(0, 2**32 - 1),
)
def test_every_item_once_in_the_kernels_layout(num_items, num_ctas, head_dim, method, seed):
    items = make_items(np.random.default_rng(seed), num_items, head_dim)
    plan, out = run(items, num_ctas, head_dim=head_dim, method=method)
    tables = decode(plan, out, num_items, num_ctas)
    indptr = tables["work_indptr"]
    assert indptr[0] == 0
    assert indptr[-1] == num_items
    assert (np.diff(indptr) >= 0).all()
    assert plan.plan_info[8] == 0
    assert (tables["qo_tile_indices"] == 0).all()
    assert (tables["batch_indices"] == 0).all()
    np.testing.assert_array_equal(np.sort(plan.order), np.arange(num_items))
    for ours, theirs in [
        ("qo_indptr", "qo_indptr"),
        ("qo_lens", "qo_len"),
        ("kv_indptr", "kv_indptr"),
        ("kv_lens", "kv_len"),
        ("head_indices", "head"),
    ]:
        np.testing.assert_array_equal(items[ours][plan.order], tables[theirs])
    loads = loads_of(items["kv_lens"], CostModel(), {64: 96, 128: 96, 256: 32}[head_dim])
    sums = [loads[plan.order[a:b]].sum() for a, b in itertools.pairwise(indptr)]
    np.testing.assert_array_equal(sums, plan.cta_loads)
    assert plan.makespan_ns == max(sums) >= plan.lower_bound_ns
    again, copy = run(items, num_ctas, head_dim=head_dim, method=method)
    assert copy.tobytes() == out.tobytes()
    assert again.order.tobytes() == plan.order.tobytes()


@pytest.mark.parametrize("num_items", [64, 256, 1024, 4096, 16384])
@pytest.mark.parametrize("shape", ["lognormal", "uniform", "heads", "one_giant"])
def test_within_two_percent_of_the_bound(num_items, shape):
    rng = np.random.default_rng(num_items)
    if shape == "lognormal":
        kv = rng.lognormal(8.5, 1.0, num_items)
    elif shape == "uniform":
        kv = rng.uniform(128, 40000, num_items)
    elif shape == "heads":
        density = np.clip(rng.lognormal(np.log(0.08), 1, 16), 0.005, 1)
        kv = (density[:, None] * np.linspace(122880, 131072, num_items // 16)).ravel()
    else:
        kv = np.where(np.arange(num_items) == 3, 1 << 20, rng.uniform(128, 4000, num_items))
    items = make_items(rng, num_items)
    items["kv_lens"] = np.maximum(kv, 128).astype(np.int32)
    items["qo_lens"][:] = 128
    plan, _ = run(items, 132)
    exact = longest_first(loads_of(items["kv_lens"], CostModel()), 132)
    assert plan.makespan_ns <= max(1.02 * plan.lower_bound_ns, 1.002 * exact)
    if shape != "heads":
        assert plan.makespan_ns <= 1.02 * plan.lower_bound_ns


def test_items_that_share_a_list_run_side_by_side():
    num_lists, group = 1024, 4
    rng = np.random.default_rng(0)
    items = make_items(rng, num_lists * group)
    items["kv_lens"] = np.repeat(rng.integers(2000, 9000, num_lists), group).astype(np.int32)
    items["qo_lens"][:] = 128
    items["kv_indptr"] = np.repeat(np.arange(num_lists) * 200, group).astype(np.int32)
    plan, out = run(items, 132)
    tables = decode(plan, out, num_lists * group, 132)
    indptr = tables["work_indptr"]
    cta = np.repeat(np.arange(132), np.diff(indptr))
    loads = loads_of(tables["kv_len"], CostModel())
    start = np.concatenate([np.cumsum(loads[a:b]) - loads[a:b] for a, b in itertools.pairwise(indptr)])
    spans, different = [], 0
    for entry in range(num_lists):
        at = np.flatnonzero(tables["kv_indptr"] == entry * 200)
        different += len(set(cta[at])) == group
        spans.append(np.ptp(start[at]) / loads.mean())
    assert different == num_lists
    assert np.median(spans) < 0.3  # of one item


def bad_items() -> dict[str, np.ndarray]:
    return make_items(np.random.default_rng(1), 8)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qo_lens", 129, r"qo_lens\[3\]: got 129, expected 1 to 128 rows"),
        ("qo_lens", 0, r"qo_lens\[3\]: got 0"),
        ("kv_lens", -1, r"kv_lens\[3\]: got -1"),
        ("kv_lens", 2**30, r"kv_lens\[3\]: got 1073741824"),
        ("qo_indptr", -1, r"qo_indptr\[3\]: got -1"),
        ("kv_indptr", -2, r"kv_indptr\[3\]: got -2"),
        ("head_indices", -3, r"head_indices\[3\]: got -3"),
    ],
)
def test_bad_element_is_named(name, value, message):
    items = bad_items()
    items[name][3] = value
    with pytest.raises(InvalidArgument, match=message):
        run(items, 4)


def test_bad_arguments_are_named():
    items = bad_items()
    with pytest.raises(InvalidArgument, match="num_ctas: got 0"):
        plan_work(*items.values(), aligned(4096), num_ctas=0, head_dim=128)
    with pytest.raises(InvalidArgument, match="head_dim: got 96, expected 64, 128 or 256"):
        plan_work(*items.values(), aligned(4096), num_ctas=4, head_dim=96)
    with pytest.raises(InvalidArgument, match="out: got 16 bytes, expected at least"):
        plan_work(*items.values(), aligned(16), num_ctas=4, head_dim=128)
    with pytest.raises(InvalidArgument, match="out: got an unaligned buffer"):
        plan_work(*items.values(), aligned(4096)[1:], num_ctas=4, head_dim=128)
    frozen = aligned(4096)
    frozen.setflags(write=False)
    with pytest.raises(InvalidArgument, match="out: got a read-only array"):
        plan_work(*items.values(), frozen, num_ctas=4, head_dim=128)
    with pytest.raises(InvalidArgument, match="num_items: got 0"):
        plan_work(*(a[:0] for a in items.values()), aligned(4096), num_ctas=4, head_dim=128)
    with pytest.raises(InvalidArgument, match="qo_lens: got 7 elements, expected 8"):
        plan_work(*({**items, "qo_lens": items["qo_lens"][:7]}).values(), aligned(4096), num_ctas=4, head_dim=128)
    with pytest.raises(InvalidArgument, match="method: got 'best'"):
        run(items, 4, method="best")
    with pytest.raises(InvalidArgument, match=r"cost.kv_tile_ns: got 0"):
        CostModel(kv_tile_ns=0)
