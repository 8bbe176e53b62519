# SPDX-License-Identifier: Apache-2.0
"""What the step planner makes of ranks that are slower or faster than its cost model says."""

import numpy as np
import pytest
from step_reference import aligned, query_blocks
from test_replica_steps import BATCHES, LAYERS, TILE, group_loads, model, placed, planners
from test_replicas import least_largest_load, split

from shplb import InvalidArgument
from shplb.planner import LEAST_SPEED, MOST_SPEED, NOMINAL_SPEED


def some_speeds(ranks, seed):
    return np.random.default_rng(seed).integers(LEAST_SPEED, MOST_SPEED + 1, ranks)


# The last batch has few items of very different lengths.
@pytest.mark.parametrize(("batch", "near"), [(BATCHES[0], 1.01), (BATCHES[1], 1.01), (BATCHES[2], 1.02)])
@pytest.mark.parametrize(("groups", "ranks"), [(2, 2), (3, 3), (8, 4), (8, 8), (16, 8)])
def test_slowest_rank_is_near_the_linear_program(groups, ranks, batch, near):
    keep = model(groups, 4, seed=groups)
    slots = placed(keep, groups, ranks)
    prefix, new = (np.array(part) for part in batch)
    loads = group_loads(keep, groups, query_blocks(prefix, new, [1] * len(new), TILE, 1, 1))
    planner = planners(keep, slots, num_ctas=1)[0]  # on one CTA a makespan is a sum
    for seed in range(3):
        speeds = some_speeds(ranks, seed)
        planner.set_rank_speeds(speeds)
        plan = planner.predict(prefix, new, "sparse")
        for layer in range(LAYERS):
            bound = least_largest_load(*split(slots[layer], loads[layer].sum(axis=(1, 2))), speeds / NOMINAL_SPEED)
            assert plan.rank_makespan_ns[layer].max() <= near * bound
        work = (plan.rank_makespan_ns * speeds / NOMINAL_SPEED).sum()
        assert work == pytest.approx(loads.sum(), rel=0.01)


@pytest.mark.parametrize("batch", [([0], [8192]), ([4096], [640]), ([0, 512], [256, 384])])
def test_one_pair_gets_no_worse_than_the_best_cut(batch):
    groups = 3
    keep = model(groups, 4, seed=7)
    slots = np.tile(np.array([[[0, 1], [0, 2]]], np.int32), (LAYERS, 1, 1))
    prefix, new = (np.array(part) for part in batch)
    loads = group_loads(keep, groups, query_blocks(prefix, new, [1] * len(new), TILE, 1, 1))
    planner = planners(keep, slots, num_ctas=1)[0]
    for seed in range(5):
        speeds = some_speeds(2, seed)
        planner.set_rank_speeds(speeds)
        plan = planner.predict(prefix, new, "sparse")
        for layer in range(LAYERS):
            # Block by block, and in a block head by head.
            given = np.concatenate([[0], np.cumsum(loads[layer, 0].T.ravel())])
            own = loads[layer].sum(axis=(1, 2))
            times = [(own[1] + given) / speeds[0], (own[2] + own[0] - given) / speeds[1]]
            best = np.maximum(*times).min() * NOMINAL_SPEED
            assert plan.rank_makespan_ns[layer].max() <= best + 1


@pytest.mark.parametrize("batch", BATCHES)
def test_only_the_division_and_the_predicted_times_of_ranks_depend_on_speeds(batch):
    keep = model(8, 4, seed=2)
    slots = placed(keep, 8, 4)
    prefix, new = (np.array(part) for part in batch)
    plain, fast = planners(keep, slots)[0], planners(keep, slots)
    for planner in fast:
        planner.set_rank_speeds(np.array([MOST_SPEED, LEAST_SPEED, NOMINAL_SPEED, NOMINAL_SPEED]))
    for mode in ("auto", "sparse"):
        before = plain.predict(prefix, new, mode)
        plans = [planner.predict(prefix, new, mode) for planner in fast]
        assert len({plan.rank_makespan_ns.tobytes() for plan in plans}) == 1
        assert plans[0].sparse.tolist() == before.sparse.tolist()
        assert plans[0].dense_ns == before.dense_ns
        assert plans[0].num_blocks == before.num_blocks
        # The parts of all ranks are all lists, each as long as before.
        totals = []
        for crew in (planners(keep, slots), fast):
            outs = [aligned(planner.buffer_bytes(len(new), int(new.sum()))) for planner in crew]
            made = [planner.plan(prefix, new, out, mode) for planner, out in zip(crew, outs, strict=True)]
            totals.append(sum(plan.list_pages for plan in made))
        np.testing.assert_array_equal(*totals)


def test_no_request_changes_its_path_at_any_length():
    # Around the crossover the division at nominal speed decides, whatever the speeds.
    keep = model(8, 4, seed=5)
    slots = placed(keep, 8, 8)
    plain, skewed = planners(keep, slots)[0], planners(keep, slots)[0]
    skewed.set_rank_speeds(np.array([MOST_SPEED, LEAST_SPEED] * 4))
    paths = []
    for tokens in range(512, 16384, 64):
        steps = [planner.predict(np.array([0]), np.array([tokens])) for planner in (plain, skewed)]
        assert steps[0].sparse == steps[1].sparse
        paths.append(int(steps[0].sparse[0]))
    assert 0 < sum(paths) < len(paths)


def test_a_slower_rank_gets_less_and_nominal_speeds_bring_all_bytes_back():
    keep = model(8, 4, seed=1, spread=0.4)
    slots = placed(keep, 8, 8)
    prefix, new = np.array([0, 65536]), np.array([8192, 4096])
    planner = planners(keep, slots, num_ctas=1)[3]  # on one CTA a makespan is a sum
    out = aligned(planner.buffer_bytes(2, int(new.sum())))
    first = planner.plan(prefix, new, out, "sparse")
    bytes_before, loads_before = out.tobytes(), first.rank_makespan_ns.copy()
    speeds = np.full(8, NOMINAL_SPEED)
    speeds[3] = 922
    planner.set_rank_speeds(speeds)
    slow = planner.plan(prefix, new, out, "sparse").rank_makespan_ns
    assert out.tobytes() != bytes_before
    work = slow[:, 3].sum() * 922 / NOMINAL_SPEED
    assert 0.89 < work / loads_before[:, 3].sum() < 0.94
    assert slow.max(axis=1).sum() < 1.03 * slow.mean(axis=1).sum()
    planner.set_rank_speeds(np.full(8, NOMINAL_SPEED))
    again = planner.plan(prefix, new, out, "sparse")
    assert out.tobytes() == bytes_before
    np.testing.assert_array_equal(again.rank_makespan_ns, loads_before)


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        ([NOMINAL_SPEED], "speeds: got 1 elements, expected num_ranks = 2"),
        ([NOMINAL_SPEED, LEAST_SPEED - 1], r"speeds\[1\]: got 767"),
        ([MOST_SPEED + 1, NOMINAL_SPEED], r"speeds\[0\]: got 1281"),
        (np.ones(2), "speeds: got float64"),
    ],
)
def test_bad_speeds_are_named(speeds, message):
    keep = model(2, 2)
    with pytest.raises(InvalidArgument, match=message):
        planners(keep, placed(keep, 2, 2))[0].set_rank_speeds(np.array(speeds))
