# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_reference import PAGE, aligned, item_load, list_lengths, query_blocks

from shplb import CostModel, InvalidArgument, StepPlanner


def make_keep(rng, layers, heads, max_pages, floor=4):
    density = np.clip(rng.lognormal(np.log(0.1), 1, (layers, heads, 1)), 0.005, 1)
    visible = np.arange(max_pages + 1)
    return np.clip(np.ceil(density * visible), np.minimum(floor, visible), visible).astype(np.int32)


def permuted_slots(rng, layers, groups, ranks):
    order = np.array([rng.permutation(groups) for _ in range(layers)], dtype=np.int32)
    return np.ascontiguousarray(order.reshape(layers, ranks, groups // ranks))


def int32_at(out, offset, count):
    return out[offset : offset + 4 * count].view(np.int32)


@st.composite
def setups(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks, slots, group = draw(st.sampled_from([(1, 1, 1), (2, 1, 3), (2, 2, 2), (1, 3, 4)]))
    layers, groups, max_pages = draw(st.integers(1, 3)), ranks * slots, draw(st.integers(1, 80))
    num_requests = draw(st.integers(1, 4))
    prefix = rng.integers(0, max_pages * PAGE, num_requests)
    new = np.array([rng.integers(1, max_pages * PAGE - p + 1) for p in prefix])
    config = {
        "num_kv_heads": groups,
        "head_dim": draw(st.sampled_from([64, 128, 256])),
        "keep_pages": make_keep(rng, layers, groups * group, max_pages, draw(st.integers(1, 4))),
        "slot_groups": permuted_slots(rng, layers, groups, ranks),
        "sink_pages": draw(st.integers(0, 2)),
        "local_pages": draw(st.integers(0, 2)),
        "shared_lists": draw(st.booleans()),
        "num_ctas": draw(st.sampled_from([1, 4, 132])),
    }
    return config, prefix, new


def check_tables(config, rank, plan, out, prefix, new):
    layers, heads, _ = config["keep_pages"].shape
    group = heads // config["num_kv_heads"]
    per_list = group if config["shared_lists"] else 1
    tile, kv_tile = {64: (192, 96), 128: (128, 96), 256: (128, 32)}[config["head_dim"]]
    blocks = query_blocks(prefix, new, plan.sparse, tile, config["sink_pages"], config["local_pages"])
    assert plan.num_blocks == len(blocks)
    for field, offset in [
        ("request", plan.block_request_offset),
        ("first_row", plan.block_first_row_offset),
        ("qo_indptr", plan.block_qo_indptr_offset),
        ("qo_len", plan.block_qo_len_offset),
    ]:
        assert int32_at(out, offset, len(blocks)).tolist() == [getattr(b, field) for b in blocks]
    if not blocks:
        return
    for layer in range(layers):
        slots = config["slot_groups"][layer, rank]
        local = [g * group + i for g in slots for i in range(group)]
        lengths = list_lengths(blocks, config["keep_pages"][layer, local], per_list)
        num_lists = lengths.size
        assert plan.num_lists == num_lists
        indptr = int32_at(out, plan.list_indptr_offset[layer], num_lists + 1)
        np.testing.assert_array_equal(np.diff(indptr), lengths.ravel())
        assert plan.list_pages[layer] == lengths.sum() == indptr[-1]
        info = plan.plan_info[layer]
        num_items = plan.num_items
        assert num_items == num_lists * per_list
        tiles, qo, kv, qo_len, kv_len, head = (int32_at(out, info[i], num_items) for i in range(6))
        assert (tiles == 0).all()
        assert (int32_at(out, info[7], num_items) == 0).all()
        wanted = set()
        for j in range(len(lengths)):
            for index, b in enumerate(blocks):
                for g in range(per_list):
                    tokens = lengths[j, index] * PAGE - b.unused
                    assert tokens >= b.qo_len
                    first = int(indptr[j * len(blocks) + index])
                    wanted.add((b.qo_indptr, first, b.qo_len, tokens, j * per_list + g))
        got = list(zip(*(a.tolist() for a in (qo, kv, qo_len, kv_len, head)), strict=True))
        assert len(got) == len(wanted)
        assert set(got) == wanted
        work = int32_at(out, info[6], config["num_ctas"] + 1)
        assert work[0] == 0
        assert work[-1] == num_items
        loads = CostModel().item_ns + CostModel().kv_tile_ns * -(-kv_len.astype(np.int64) // kv_tile)
        sums = [loads[a:b].sum() for a, b in itertools.pairwise(work)]
        assert plan.cta_makespan_ns[layer] == max(sums)


@settings(max_examples=120, deadline=None)
@given(setups(), st.sampled_from(["auto", "sparse"]), st.sampled_from([None, 0, 1]))
def test_tables_are_what_the_reference_says(setup, mode, stock_seed):
    config, prefix, new = setup
    stock = None if stock_seed is None else np.random.default_rng(stock_seed).integers(0, 2, len(new), dtype=np.uint8)
    ranks = config["slot_groups"].shape[1]
    plans = []
    for rank in range(ranks):
        planner = StepPlanner(rank=rank, **config)
        out = aligned(planner.buffer_bytes(len(prefix), int(new.sum())))
        plan = planner.plan(prefix, new, out, mode, stock)
        assert plan.num_bytes <= out.size
        if stock is not None:
            assert not plan.sparse[stock != 0].any()
            assert mode == "auto" or plan.sparse[stock == 0].all()
            assert plan.dense_ns == planner.predict(prefix, new, mode).dense_ns
        check_tables(config, rank, plan, out, prefix, new)
        plans.append(plan)
        predicted = planner.predict(prefix, new, mode, stock)
        np.testing.assert_array_equal(predicted.rank_makespan_ns, plan.rank_makespan_ns)
        assert (predicted.step_ns, predicted.dense_ns) == (plan.step_ns, plan.dense_ns)
        repeated = aligned(out.size)
        planner.plan(prefix, new, repeated, mode, stock)
        assert repeated.tobytes() == out.tobytes()
    for plan in plans[1:]:
        np.testing.assert_array_equal(plan.rank_makespan_ns, plans[0].rank_makespan_ns)
        np.testing.assert_array_equal(plan.sparse, plans[0].sparse)
        assert plan.step_ns == plans[0].step_ns


@settings(max_examples=200, deadline=None)
@given(setups())
def test_auto_is_never_predicted_to_be_slower_than_dense(setup):
    config, prefix, new = setup
    plan = StepPlanner(rank=0, **config).predict(prefix, new)
    assert plan.step_ns <= plan.dense_ns
    assert (plan.num_blocks > 0) == plan.sparse.any()


def test_dense_where_no_single_request_makes_the_difference():
    # Dropping either request alone doesn't help, dropping both does.
    rng = np.random.default_rng(0)
    config = {
        "num_kv_heads": 8,
        "head_dim": 128,
        "keep_pages": make_keep(rng, 32, 32, 256),
        "slot_groups": permuted_slots(rng, 32, 8, 8),
    }
    planner = StepPlanner(rank=0, **config)
    found = False
    for _ in range(2000):
        prefix, new = np.array([0, 0]), rng.integers(1024, 8192, 2)
        forced, chosen = planner.predict(prefix, new, "sparse"), planner.predict(prefix, new)
        assert chosen.step_ns <= chosen.dense_ns
        found |= forced.step_ns > forced.dense_ns and not chosen.sparse.any()
    assert found


@settings(max_examples=60, deadline=None)
@given(setups())
def test_predicted_makespan_is_max_of_mean_and_longest(setup):
    config, prefix, new = setup
    # Full blocks from block boundaries, so that the tables' rounding of partial blocks plays no part.
    tile, kv_tile = {64: (192, 96), 128: (128, 96), 256: (128, 32)}[config["head_dim"]]
    if config["keep_pages"].shape[2] - 1 < tile // PAGE:
        return
    prefix, new = prefix[:1] // tile * tile, np.array([tile])
    if prefix[0] + tile > (config["keep_pages"].shape[2] - 1) * PAGE:
        prefix[:] = 0
    plan = StepPlanner(rank=0, **config).predict(prefix, new, "sparse")
    blocks = query_blocks(prefix, new, [1], tile, config["sink_pages"], config["local_pages"])
    layers, heads, _ = config["keep_pages"].shape
    group = heads // config["num_kv_heads"]
    per_list = group if config["shared_lists"] else 1
    for layer in range(layers):
        for rank, slots in enumerate(config["slot_groups"][layer]):
            local = [g * group + i for g in slots for i in range(group)]
            lengths = list_lengths(blocks, config["keep_pages"][layer, local], per_list)
            loads = item_load(lengths, CostModel(), kv_tile)
            mean = -(-int(loads.sum()) * per_list // config["num_ctas"])
            assert plan.rank_makespan_ns[layer, rank] == max(mean, loads.max())


def planner_of(rank=0, ranks=2, groups=4, layers=4, max_pages=2048, seed=0, slots=None, **options):
    rng = np.random.default_rng(seed)
    keep = make_keep(rng, layers, groups * 4, max_pages)
    slots = permuted_slots(rng, layers, groups, ranks) if slots is None else slots
    return StepPlanner(num_kv_heads=groups, head_dim=128, keep_pages=keep, slot_groups=slots, rank=rank, **options)


def test_dense_or_sparse_goes_by_makespan():
    planner = planner_of()
    long_chunk = planner.predict(np.array([122880]), np.array([8192]))
    assert long_chunk.sparse.tolist() == [1]
    assert long_chunk.step_ns < long_chunk.dense_ns
    # 64 new tokens on 120K cached: 8 long items on 132 CTAs, which the sparse kernel can't split.
    starved = planner.predict(np.array([122880]), np.array([64]))
    assert starved.sparse.tolist() == [0]
    assert planner.predict(np.array([122880]), np.array([64]), "sparse").step_ns > starved.dense_ns
    assert planner.predict(np.array([0]), np.array([256])).sparse.tolist() == [0]
    both = planner.predict(np.array([122880, 0]), np.array([8192, 64]))
    assert both.sparse.tolist() == [1, 0]
    everything = planner.predict(np.array([122880, 0]), np.array([8192, 64]), "dense")
    assert everything.sparse.tolist() == [0, 0]
    assert everything.step_ns == everything.dense_ns
    assert both.step_ns <= everything.dense_ns


def test_decode_loads_add_up():
    planner = planner_of()
    lens = np.array([100, 5000, 131071])
    together = planner.decode_loads(lens)
    apart = sum(planner.decode_loads(lens[i : i + 1]) for i in range(3))
    assert together.shape == (4, 2)
    np.testing.assert_array_equal(together, apart)
    many = planner.decode_loads(np.full(5000, 131071))
    np.testing.assert_array_equal(many, 5000 * planner.decode_loads(np.array([131071])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads: got 3, expected a divisor of num_qo_heads=16"),
        ({"head_dim": 80}, "head_dim: got 80"),
        ({"rank": 2}, r"rank: got 2, expected a value in \[0, 1\]"),
        ({"num_ctas": 0}, "num_ctas: got 0"),
        ({"num_threads": 0}, "num_threads: got 0"),
        ({"num_threads": 65}, "num_threads: got 65"),
        ({"sink_pages": -1}, "sink_pages: got -1"),
        ({"keep_pages": np.zeros((2, 16, 11), np.int32)}, r"keep_pages\[0, 0, 1\]: got 0, expected 1 to 1"),
        ({"keep_pages": np.full((2, 16, 11), 3, np.int32)}, r"keep_pages\[0, 0, 0\]: got 3, expected 0"),
        ({"keep_pages": np.zeros((2, 16, 1), np.int32)}, "max_pages: got 0"),
        ({"slot_groups": np.array([[[0, 1], [2, 2]]] * 2, np.int32)}, r"slot_groups\[0, 1, 1\]: got one more copy"),
        ({"slot_groups": np.array([[[0, 1], [2, 4]]] * 2, np.int32)}, r"slot_groups\[0, 1, 1\]: got 4"),
        ({"slot_groups": np.array([[[0, 1], [2, 1]]] * 2, np.int32)}, r"slot_groups\[0\]: got no copy of group 3"),
        ({"slot_groups": np.array([[[0, 1], [2, 3]]], np.int32)}, "slot_groups: got shape"),
    ],
)
def test_bad_configuration_is_named(change, message):
    config = {
        "num_kv_heads": 4,
        "head_dim": 128,
        "keep_pages": np.tile(np.arange(11, dtype=np.int32), (2, 16, 1)),
        "slot_groups": np.array([[[0, 1], [2, 3]]] * 2, np.int32),
        "rank": 0,
    }
    with pytest.raises(InvalidArgument, match=message):
        StepPlanner(**(config | change))


@pytest.mark.parametrize(
    ("prefix", "new", "message"),
    [
        ([], [], "num_requests: got 0"),
        ([0], [0], r"new_lens\[0\]: got 0"),
        ([0, 5], [4, -1], r"new_lens\[1\]: got -1"),
        ([-1], [4], r"prefix_lens\[0\]: got -1"),
        ([131072], [1], r"prefix_lens\[0\]: got 131072"),
        ([131071], [2], r"new_lens\[0\]: got 2, expected 1 to max_pages \* 64 - prefix = 1"),
        ([2**62], [2**62], r"prefix_lens\[0\]"),
        ([0], [1, 1], "new_lens: got 2 elements"),
    ],
)
def test_bad_batch_is_named(prefix, new, message):
    planner = planner_of()
    with pytest.raises(InvalidArgument, match=message):
        planner.plan(np.array(prefix, np.int64), np.array(new, np.int64), aligned(1 << 20))
    good = planner.plan(np.array([0]), np.array([64]), aligned(1 << 20))
    assert good.dense_ns > 0
    with pytest.raises(InvalidArgument, match="stock: got 2 elements, expected 1, as prefix_lens"):
        planner.predict(np.array([0]), np.array([64]), "auto", np.zeros(2, np.uint8))


def test_buffer_too_small_is_named():
    planner = planner_of()
    with pytest.raises(InvalidArgument, match="out: got 64 bytes, expected at least"):
        planner.plan(np.array([122880]), np.array([8192]), aligned(64))
