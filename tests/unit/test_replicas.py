# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from shplb import InvalidArgument, divide_replicas, place_heads, place_replicas


def least_largest_load(own: np.ndarray, shared: list[tuple[int, int, int]], speeds: np.ndarray | None = None) -> float:
    """Optimum of the division by an LP solver; own: load per rank, shared: (rank, rank, load); speeds: loads that
    ranks get done in unit time, which makes it the least time of the slowest rank."""
    ranks, unit = len(own), max(int(own.sum()) + sum(load for *_, load in shared), 1)
    own, shared = own / unit, [(one, other, load / unit) for one, other, load in shared]
    objective = [0.0] * len(shared) + [1.0]
    rows, limits = [], []
    for rank in range(ranks):
        row, limit = [0.0] * len(shared) + [-1.0 if speeds is None else -float(speeds[rank])], -float(own[rank])
        for k, (one, other, load) in enumerate(shared):
            if one == rank:
                row[k] = float(load)
            elif other == rank:
                row[k] = -float(load)
                limit -= float(load)
        rows.append(row)
        limits.append(limit)
    bounds = [(0, 1)] * len(shared) + [(0, None)]
    return float(linprog(objective, rows, limits, bounds=bounds).fun) * unit


def split(slots: np.ndarray, loads: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """What every rank has alone, and what two share, of one layer's slots [num_ranks, num_slots]."""
    own, shared = np.zeros(len(slots), np.int64), []
    for unit, load in enumerate(loads.tolist()):
        ranks = np.flatnonzero((slots == unit).any(axis=1)).tolist()
        if len(ranks) == 1:
            own[ranks[0]] += load
        else:
            shared.append((*ranks, load))
    return own, shared


def every_placement(units: int, ranks: int, replicas: int):
    """All ways to fill the slots, as [num_ranks, num_slots]."""
    slots = units // ranks + replicas
    choices = [[(r,) for r in range(ranks)] + list(itertools.combinations(range(ranks), 2))] * units
    for seats in itertools.product(*choices):
        held = [[unit for unit, seat in enumerate(seats) if rank in seat] for rank in range(ranks)]
        if all(len(each) == slots for each in held):
            yield np.array(held)


SIZES = [(2, 2, 1), (3, 3, 1), (4, 4, 1), (4, 2, 1), (6, 3, 1), (8, 4, 1), (8, 8, 1), (8, 4, 2), (12, 4, 1)]
cases = st.sampled_from(SIZES)


@settings(max_examples=80, deadline=None)
@given(cases, st.sampled_from(["auto", "greedy"]), st.integers(0, 2**32 - 1), st.sampled_from([4, 10**9]))
def test_placement_keeps_the_contract(case, method, seed, largest):
    units, ranks, replicas = case
    loads = np.random.default_rng(seed).integers(0, largest // units + 1, (3, units))
    placement = place_replicas(loads, ranks, replicas, method=method)
    assert placement.slot_groups.shape == (3, ranks, units // ranks + replicas)
    for layer, slots in enumerate(placement.slot_groups):
        assert (np.diff(slots, axis=1) > 0).all()
        copies = np.bincount(slots.ravel(), minlength=units)
        assert (copies >= 1).all()
        assert (copies == 2).sum() == ranks * replicas
        assert [each.tolist() for each in slots] == sorted(each.tolist() for each in slots)
        best = least_largest_load(*split(slots, loads[layer]))
        assert placement.rank_loads[layer].max() == pytest.approx(best, rel=1e-6, abs=1)
        assert placement.rank_loads[layer].sum() == loads[layer].sum()
        assert placement.lower_bound[layer] <= placement.rank_loads[layer].max()
    np.testing.assert_array_equal(divide_replicas(loads, placement.slot_groups).max(axis=1),
                                  placement.rank_loads.max(axis=1))  # fmt: skip
    again = place_replicas(loads, ranks, replicas, method=method)
    assert again.slot_groups.tobytes() == placement.slot_groups.tobytes()


@pytest.mark.parametrize("case", [(2, 2, 1), (3, 3, 1), (4, 2, 1), (4, 4, 1), (4, 2, 2)])
def test_auto_finds_the_best_of_all_placements(case):
    units, ranks, replicas = case
    ways = np.array(list(every_placement(units, ranks, replicas)), dtype=np.int32)
    rng = np.random.default_rng(units)
    for skew in (0.5, 1.0, 2.0):
        loads = rng.lognormal(10, skew, (1, units)).astype(np.int64)
        found = divide_replicas(np.repeat(loads, len(ways), axis=0), ways)
        best = found.max(axis=1).min()
        assert place_replicas(loads, ranks, replicas).rank_loads.max() == best
        assert place_replicas(loads, ranks, replicas, method="exact").rank_loads.max() == best
        assert place_replicas(loads, ranks, replicas, method="greedy").rank_loads.max() >= best


@pytest.mark.parametrize(("units", "ranks"), [(8, 8), (8, 4), (16, 8)])
def test_better_than_eplb_and_than_whole_units(units, ranks):
    loads = np.random.default_rng(3).lognormal(10, 0.7, (100, units)).astype(np.int64)
    ours, greedy = place_replicas(loads, ranks, 1), place_replicas(loads, ranks, 1, method="greedy")
    assert (ours.rank_loads.max(axis=1) <= greedy.rank_loads.max(axis=1)).all()
    assert ours.imbalance.mean() < 0.98 * greedy.imbalance.mean()
    assert ours.imbalance.mean() < 0.8 * place_heads(loads, ranks).imbalance.mean()


def test_without_replicas_it_is_a_placement_of_whole_units():
    loads = np.random.default_rng(4).lognormal(10, 1, (50, 8)).astype(np.int64)
    whole = place_replicas(loads, 4, 0, method="exact")
    np.testing.assert_array_equal(whole.rank_loads.max(axis=1), place_heads(loads, 4).rank_loads.max(axis=1))


def test_more_units_than_the_search_takes():
    loads = np.random.default_rng(5).lognormal(10, 1, (2, 64)).astype(np.int64)
    placement = place_replicas(loads, 8, 1)
    assert (placement.rank_loads.max(axis=1) <= 1.001 * placement.lower_bound).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loads": np.ones((1, 4))}, "loads: got float64"),
        ({"loads": np.array([[1, -1, 0, 0]])}, r"loads\[0, 1\]: got -1"),
        ({"num_ranks": 3}, "num_ranks: got 3, expected a divisor of num_units=4"),
        ({"num_replicas": -1}, "num_replicas: got -1"),
        ({"num_replicas": 3}, r"num_replicas: got 3, expected a value in \[0, 2\]"),
        ({"num_ranks": 1}, r"num_replicas: got 1, expected a value in \[0, 0\]"),
        ({"method": "best"}, "method: got 'best'"),
        ({"loads": np.ones((1, 600), np.int64)}, "num_units: got 600"),
    ],
)
def test_bad_problem_is_named(change, message):
    arguments = {"loads": np.ones((1, 4), np.int64), "num_ranks": 2, "num_replicas": 1} | change
    with pytest.raises(InvalidArgument, match=message):
        place_replicas(**arguments)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[[0, 1], [1, 4]]], r"slot_groups\[0, 1, 1\]: got 4, expected a unit in \[0, 3\)"),
        ([[[0, 0], [1, 2]]], r"slot_groups\[0, 0, 1\]: got one more copy of unit 0"),
        ([[[0, 1], [0, 1]]], r"slot_groups\[0\]: got no slot with unit 2"),
        ([[[0, 1], [0, 2]], [[0, 1], [0, 2]]], "slot_groups: got shape"),
    ],
)
def test_bad_slots_are_named(slots, message):
    with pytest.raises(InvalidArgument, match=message):
        divide_replicas(np.ones((1, 3), np.int64), np.array(slots, np.int32))
