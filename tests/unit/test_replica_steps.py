# SPDX-License-Identifier: Apache-2.0
"""How the step planner divides replicated KV groups between their two ranks."""

import itertools

import numpy as np
import pytest
from step_reference import aligned, item_load, list_lengths, query_blocks
from test_replicas import least_largest_load, split

from shplb import CostModel, StepPlanner, place_replicas, simulate

TILE, KV_TILE = 128, 96
LAYERS, MAX_PAGES = 6, 2048


def model(groups, group_size, seed=0, spread=0.8):
    rng = np.random.default_rng(seed)
    density = np.clip(0.1 * rng.lognormal(0, spread, (LAYERS, groups * group_size, 1)), 0.005, 1)
    visible = np.arange(MAX_PAGES + 1)
    return np.clip(np.ceil(density * visible), np.minimum(4, visible), visible).astype(np.int32)


def group_loads(keep, groups, blocks):
    """Item loads [layers, groups, group_size, blocks] of whole batches."""
    lengths = np.array([list_lengths(blocks, layer) for layer in keep])
    return item_load(lengths, CostModel(), KV_TILE).reshape(len(keep), groups, -1, len(blocks))


def planners(keep, slots, **options):
    groups = int(slots.max()) + 1
    return [
        StepPlanner(num_kv_heads=groups, head_dim=128, keep_pages=keep, slot_groups=slots, rank=rank, **options)
        for rank in range(slots.shape[1])
    ]


def placed(keep, groups, ranks, replicas=1):
    loads = keep[:, :, -1].reshape(LAYERS, groups, -1).sum(axis=2).astype(np.int64)
    return np.ascontiguousarray(place_replicas(loads, ranks, replicas).slot_groups)


BATCHES = [([0], [8192]), ([122880], [8192]), ([0, 65536, 1024], [2048, 4096, 1000]), ([64], [3000]), ([0], [60])]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("groups", "ranks"), [(2, 2), (3, 3), (8, 4), (8, 8)])
def test_copies_share_all_items_between_them(groups, ranks, batch):
    group_size = 3
    keep = model(groups, group_size)
    slots = placed(keep, groups, ranks)
    prefix, new = (np.array(part) for part in batch)
    blocks = query_blocks(prefix, new, [1] * len(new), TILE, 1, 1)
    computed = np.zeros((LAYERS, groups, group_size, len(blocks)), dtype=np.int64)
    for rank, planner in enumerate(planners(keep, slots)):
        out = aligned(planner.buffer_bytes(len(new), int(new.sum())))
        plan = planner.plan(prefix, new, out, "sparse")
        np.testing.assert_array_equal(planner.predict(prefix, new, "sparse").owned_blocks, plan.owned_blocks)
        for layer in range(LAYERS):
            info = plan.plan_info[layer]
            items = out[info[6] :].view(np.int32)[:133][-1]
            rows, heads, lens = (out[info[i] :].view(np.int32)[:items] for i in (1, 5, 4))
            assert (lens > 0).all()
            at = {b.qo_indptr: index for index, b in enumerate(blocks)}
            for row, head in zip(rows.tolist(), heads.tolist(), strict=True):
                computed[layer, slots[layer, rank, head // group_size], head % group_size, at[row]] += 1
                first, end = plan.owned_blocks[layer, head]
                assert first <= at[row] < end
    assert (computed == 1).all()


@pytest.mark.parametrize("batch", BATCHES[:3])
@pytest.mark.parametrize(("groups", "ranks"), [(2, 2), (3, 3), (8, 4), (8, 8), (16, 8)])
def test_largest_load_is_within_one_percent_of_the_linear_program(groups, ranks, batch):
    keep = model(groups, 4, seed=groups)
    slots = placed(keep, groups, ranks)
    prefix, new = (np.array(part) for part in batch)
    loads = group_loads(keep, groups, query_blocks(prefix, new, [1] * len(new), TILE, 1, 1))
    # On one CTA a makespan is a sum.
    plan = planners(keep, slots, num_ctas=1)[0].predict(prefix, new, "sparse")
    for layer in range(LAYERS):
        bound = least_largest_load(*split(slots[layer], loads[layer].sum(axis=(1, 2))))
        assert plan.rank_makespan_ns[layer].max() <= 1.01 * bound
        assert plan.rank_makespan_ns[layer].sum() == pytest.approx(loads[layer].sum(), rel=0.01)


@pytest.mark.parametrize("batch", [([0], [8192]), ([4096], [640]), ([0, 512], [256, 384])])
def test_one_pair_gets_no_worse_than_the_best_cut(batch):
    groups, group_size = 3, 4
    keep = model(groups, group_size, seed=7)
    slots = np.tile(np.array([[[0, 1], [0, 2]]], np.int32), (LAYERS, 1, 1))
    prefix, new = (np.array(part) for part in batch)
    loads = group_loads(keep, groups, query_blocks(prefix, new, [1] * len(new), TILE, 1, 1))
    plan = planners(keep, slots, num_ctas=1)[0].predict(prefix, new, "sparse")
    for layer in range(LAYERS):
        # Block by block, and in a block head by head.
        given = np.concatenate([[0], np.cumsum(loads[layer, 0].T.ravel())])
        own = loads[layer].sum(axis=(1, 2))
        best = np.maximum(own[1] + given, own[2] + own[0] - given).min()
        assert own.sum() / 2 <= plan.rank_makespan_ns[layer].max() <= best


def test_division_follows_the_lengths_of_the_step():
    keep = model(8, 4, seed=1, spread=0.4)
    # One group keeps few pages early and many late: its share must move with the context.
    keep[:, :4, 1024:] = np.minimum(keep[:, :4, 1024:] * 3 // 2, np.arange(1024, MAX_PAGES + 1))
    slots = placed(keep, 8, 4)
    planner = planners(keep, slots)[0]
    early = planner.predict(np.array([16384]), np.array([8192]), "sparse")
    late = planner.predict(np.array([122880]), np.array([8192]), "sparse")
    assert (early.owned_blocks != late.owned_blocks).any()
    for plan in (early, late):
        assert plan.rank_makespan_ns.max(axis=1).sum() <= 1.03 * plan.rank_makespan_ns.mean(axis=1).sum()


@pytest.mark.parametrize("shared_lists", [False, True])
def test_ranks_agree_and_leave_nothing_of_earlier_steps(shared_lists):
    keep = model(8, 4, seed=2)
    slots = placed(keep, 8, 4)
    crew = planners(keep, slots, shared_lists=shared_lists)
    for prefix, new in itertools.islice(itertools.cycle(BATCHES), 12):
        prefix, new = np.array(prefix), np.array(new)
        plans = [planner.predict(prefix, new) for planner in crew]
        assert all(plan.step_ns == plans[0].step_ns <= plan.dense_ns for plan in plans)
        assert len({plan.rank_makespan_ns.tobytes() for plan in plans}) == 1
        fresh = planners(keep, slots, shared_lists=shared_lists)[0]
        outs = []
        for planner in (crew[0], fresh):
            out = aligned(planner.buffer_bytes(len(new), int(new.sum())))
            planner.plan(prefix, new, out, "sparse")
            outs.append(out.tobytes())
        assert outs[0] == outs[1]


def test_dense_prompts_are_divided_where_that_is_faster():
    # All pages kept: the stock path would compute both copies of both groups on both ranks.
    visible = np.arange(MAX_PAGES + 1, dtype=np.int32)
    keep = np.tile(visible, (LAYERS, 16, 1))
    slots = np.tile(np.array([[[0, 1], [0, 1]]], np.int32), (LAYERS, 1, 1))
    plan = planners(keep, slots)[0].predict(np.array([0]), np.array([32768]))
    assert plan.sparse.tolist() == [1]
    assert plan.step_ns < 0.6 * plan.dense_ns


def test_simulated_bubble_with_replicas():
    keep = model(8, 4, seed=3, spread=0.4)
    whole = np.tile(np.arange(8, dtype=np.int32).reshape(1, 8, 1), (LAYERS, 1, 1))
    bubbles = []
    for slots in (whole, placed(keep, 8, 8)):
        planner = StepPlanner(num_kv_heads=8, head_dim=128, keep_pages=keep, slot_groups=slots, rank=0)
        steps = simulate(planner, np.arange(2), np.array([0]), np.array([131072]), "sparse")
        bubbles.append(float(steps.bubble[0]))
    assert bubbles[1] < 0.05 < 0.15 < bubbles[0]
