# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shplb import Infeasible, InvalidArgument, place_heads

METHODS = ["auto", "exact", "lpt_swap", "lpt", "snake", "contiguous"]


def brute_force(loads: list[int], num_ranks: int, equal_count: bool) -> int:
    """Smallest possible largest rank load, by trying every assignment."""
    best = sum(loads)
    for assignment in itertools.product(range(num_ranks), repeat=len(loads)):
        counts = [assignment.count(rank) for rank in range(num_ranks)]
        if equal_count and len(set(counts)) > 1:
            continue
        rank_loads = [0] * num_ranks
        for load, rank in zip(loads, assignment, strict=True):
            rank_loads[rank] += load
        best = min(best, max(rank_loads))
    return best


def reference_lpt(loads: list[int], num_ranks: int, capacity: int) -> int:
    """Largest rank load of equal-count longest-first."""
    rank_loads, counts = [0] * num_ranks, [0] * num_ranks
    for load in sorted(loads, reverse=True):
        rank = min((r for r in range(num_ranks) if counts[r] < capacity), key=lambda r: (rank_loads[r], r))
        rank_loads[rank] += load
        counts[rank] += 1
    return max(rank_loads)


small = st.tuples(st.sampled_from([(2, 2), (4, 2), (6, 2), (6, 3), (8, 2), (8, 4), (3, 3), (7, 1)]), st.data())


@settings(max_examples=60, deadline=None)
@given(small, st.booleans(), st.sampled_from([10, 1000, 2**40]))
def test_auto_is_exact_up_to_eight_units(problem, equal_count, largest):
    (num_units, num_ranks), data = problem
    loads = data.draw(hnp.arrays(np.int64, (1, num_units), elements=st.integers(0, largest)))
    best = brute_force(loads[0].tolist(), num_ranks, equal_count)
    for method in ("auto", "exact"):
        placement = place_heads(loads, num_ranks, equal_count=equal_count, method=method)
        assert placement.rank_loads.max() == best
        assert placement.lower_bound[0] <= best


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 6), st.booleans(), st.sampled_from(METHODS), st.data())
def test_every_method_keeps_the_contract(num_layers, num_ranks, per_rank, equal_count, method, data):
    num_units = num_ranks * per_rank if method != "exact" else num_ranks * min(per_rank, 2)
    loads = data.draw(hnp.arrays(np.int64, (num_layers, num_units), elements=st.integers(0, 1000)))
    placement = place_heads(loads, num_ranks, equal_count=equal_count, method=method)
    for layer in range(num_layers):
        ranks = placement.head_to_rank[layer]
        assert ranks.dtype == np.int32
        assert ((ranks >= 0) & (ranks < num_ranks)).all()
        counts = np.bincount(ranks, minlength=num_ranks)
        if equal_count or method in ("contiguous", "snake"):
            assert (counts == num_units // num_ranks).all()
        sums = np.bincount(ranks, weights=loads[layer], minlength=num_ranks)
        np.testing.assert_array_equal(sums, placement.rank_loads[layer])
        assert placement.lower_bound[layer] <= sums.max()
        expected = sums.max() * num_ranks / sums.sum() if sums.sum() else 1.0
        assert placement.imbalance[layer] == pytest.approx(expected, rel=1e-12)
    again = place_heads(loads, num_ranks, equal_count=equal_count, method=method)
    assert again.head_to_rank.tobytes() == placement.head_to_rank.tobytes()


@pytest.mark.parametrize("method", ["auto", "lpt_swap"])
@pytest.mark.parametrize(("num_units", "num_ranks"), [(32, 4), (32, 8), (64, 8)])
def test_never_worse_than_longest_first(method, num_units, num_ranks):
    loads = np.random.default_rng(1).lognormal(10, 1, (300, num_units)).astype(np.int64)
    ours = place_heads(loads, num_ranks, method=method)
    lpt = place_heads(loads, num_ranks, method="lpt")
    for layer in range(len(loads)):
        assert lpt.rank_loads[layer].max() == reference_lpt(loads[layer].tolist(), num_ranks, num_units // num_ranks)
    assert (ours.rank_loads.max(axis=1) <= lpt.rank_loads.max(axis=1)).all()
    assert (ours.rank_loads.max(axis=1) / ours.lower_bound).mean() < 1.01


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([(8, 2), (16, 4), (32, 8)]), st.booleans(), st.integers(0, 2**32 - 1))
def test_order_of_units_does_not_matter(problem, equal_count, seed):
    num_units, num_ranks = problem
    rng = np.random.default_rng(seed)
    loads = rng.integers(0, 50, (1, num_units))
    moved = np.ascontiguousarray(loads[:, rng.permutation(num_units)])
    for method in ("auto", "lpt_swap", "lpt", "snake"):
        ours, theirs = (place_heads(x, num_ranks, equal_count=equal_count, method=method) for x in (loads, moved))
        np.testing.assert_array_equal(np.sort(ours.rank_loads), np.sort(theirs.rank_loads))
        np.testing.assert_array_equal(ours.lower_bound, theirs.lower_bound)


def test_uneven_counts_use_the_freedom():
    loads = np.array([[100, 1, 1, 1, 1, 1, 1, 1]], dtype=np.int64)
    assert place_heads(loads, 2, equal_count=False).rank_loads.max() == 100
    assert place_heads(loads, 2).rank_loads.max() == 103


def test_ranks_are_named_by_their_lowest_unit():
    loads = np.array([[1, 9, 2, 8]], dtype=np.int64)
    placement = place_heads(loads, 2)
    assert placement.head_to_rank[0, 0] == 0
    assert placement.rank_loads.max() == 10


def test_contiguous_and_snake_are_what_they_say():
    loads = np.array([[5, 1, 4, 2, 3, 6]], dtype=np.int64)
    assert place_heads(loads, 3, method="contiguous").head_to_rank.tolist() == [[0, 0, 1, 1, 2, 2]]
    # sorted: 6 5 4 | 3 2 1 dealt 0 1 2 | 2 1 0
    assert place_heads(loads, 3, method="snake").head_to_rank.tolist() == [[1, 0, 2, 1, 2, 0]]


def test_float_loads_are_scaled():
    loads = np.array([[0.5, 0.25, 0.75, 1.0]])
    placement = place_heads(loads, 2)
    assert placement.rank_loads.dtype == np.float64
    np.testing.assert_array_equal(placement.rank_loads, [[1.25, 1.25]])
    np.testing.assert_array_equal(placement.lower_bound, [1.25])
    scaled = place_heads(np.array([[2, 1, 3, 4]], dtype=np.int64), 2)
    np.testing.assert_array_equal(scaled.head_to_rank, placement.head_to_rank)


def test_inert_units_with_load_zero():
    loads = np.array([[3, 3, 3, 0]], dtype=np.int64)
    placement = place_heads(loads, 2)
    assert placement.rank_loads.max() == 6
    assert placement.imbalance[0] == pytest.approx(6 / 4.5)
    assert place_heads(np.zeros((2, 4), np.int64), 2).imbalance.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loads": [[1, 2]]}, r"loads: got list, expected a C-contiguous numpy array of int64 with 2 axes"),
        ({"loads": np.ones((1, 4), np.int32)}, "loads: got int32"),
        ({"loads": np.ones(4, np.int64)}, r"loads: got shape \(4,\)"),
        ({"loads": np.ones((4, 4), np.int64).T[:, ::2]}, "loads: got a strided"),
        ({"loads": np.array([[1, -1, 0, 0]])}, r"loads\[0, 1\]: got -1"),
        ({"loads": np.array([[2**62, 1, 0, 0]])}, r"loads\[0, 0\]: got 4611686018427387904"),
        ({"loads": np.array([[1, np.nan, 0, 0]])}, r"loads\[0, 1\]: got nan, expected a finite load >= 0"),
        ({"loads": np.array([[1, np.inf, 0, 0]])}, r"loads\[0, 1\]: got inf"),
        ({"loads": np.ones((0, 4), np.int64)}, "num_layers: got 0"),
        ({"loads": np.ones((1, 0), np.int64)}, "num_units: got 0"),
        ({"num_ranks": 0}, "num_ranks: got 0"),
        ({"num_ranks": 3}, "num_ranks: got 3, expected a divisor of num_units=4 under equal_count"),
        ({"method": "best"}, "method: got 'best'"),
    ],
)
def test_bad_input_names_argument_got_expected(change, message):
    arguments = {"loads": np.ones((1, 4), np.int64), "num_ranks": 2, "method": "auto"} | change
    with pytest.raises(InvalidArgument, match=message):
        place_heads(arguments.pop("loads"), arguments.pop("num_ranks"), **arguments)
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(Infeasible, RuntimeError)
