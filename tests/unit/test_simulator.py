# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from shplb import InvalidArgument, StepPlanner, simulate


def make_planner(slots):
    visible = np.arange(2049)
    density = np.clip(np.random.default_rng(5).lognormal(np.log(0.1), 1, (3, 16, 1)), 0.005, 1)
    keep = np.clip(np.ceil(density * visible), np.minimum(4, visible), visible).astype(np.int32)
    return StepPlanner(num_kv_heads=4, head_dim=128, keep_pages=keep, slot_groups=slots, rank=0)


ONE_RANK = np.tile(np.arange(4, dtype=np.int32).reshape(1, 1, 4), (3, 1, 1))
TWO_RANKS = np.ascontiguousarray(ONE_RANK.reshape(3, 2, 2))


def test_a_trace_is_its_steps():
    planner = make_planner(TWO_RANKS)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4, 12)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    prefix, new = rng.integers(0, 100_000, indptr[-1]), rng.integers(1, 9000, indptr[-1])
    trace = simulate(planner, indptr, prefix, new)
    assert trace.rank_ns.shape == (12, 2)
    for step, (a, b) in enumerate(itertools.pairwise(indptr)):
        plan = planner.predict(prefix[a:b], new[a:b])
        slowest = plan.rank_makespan_ns.max(axis=1).sum()
        assert trace.step_ns[step] == plan.step_ns <= plan.dense_ns == trace.dense_ns[step]
        assert trace.makespan_ns[step] == slowest
        assert trace.num_sparse[step] == plan.sparse.sum()
        np.testing.assert_array_equal(trace.rank_ns[step], plan.rank_makespan_ns.sum(axis=0))
        expected = 1 - trace.rank_ns[step].mean() / slowest if slowest else 0.0
        assert trace.bubble[step] == pytest.approx(expected, abs=1e-12)


def test_one_rank_has_no_bubble():
    trace = simulate(make_planner(ONE_RANK), np.array([0, 1]), np.array([65536]), np.array([8192]), "sparse")
    assert trace.bubble.tolist() == [0.0]


@pytest.mark.parametrize(
    ("indptr", "message"),
    [
        ([0], "num_steps: got 0"),
        ([1, 2], r"step_indptr\[0\]: got 1, expected 0"),
        ([0, 2, 1], r"step_indptr\[2\]: got 1"),
        ([0, 3], r"step_indptr\[1\]: got 3"),
        ([0, 1], r"step_indptr\[-1\]: got 1, expected num_requests=2"),
    ],
)
def test_bad_trace_is_named(indptr, message):
    with pytest.raises(InvalidArgument, match=message):
        simulate(make_planner(TWO_RANKS), np.array(indptr), np.array([0, 0]), np.array([1, 1]))
