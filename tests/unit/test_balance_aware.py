# SPDX-License-Identifier: Apache-2.0
"""Budgets and placement together: the linear programme for a placement, brute force over placements, never worse."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_budget import concave_points

from shplb import InvalidArgument, allocate_balance_aware, allocate_budgets, place_heads

Problem = dict[str, Any]


def hull_lines(curve: np.ndarray, densities: np.ndarray, floor: float) -> list[tuple[float, float]]:
    """(slope, offset) of the lines below which error can't fall, on [floor, 1]; error at 0 by the first segment."""
    first = curve[0] + max(curve[0] - curve[1], 0.0) / (densities[1] - densities[0]) * densities[0]
    x = np.concatenate([[floor], densities[densities > floor]])
    y = np.interp(x, np.concatenate([[0.0], densities]), np.minimum.accumulate([first, *curve]))
    hull = concave_points(x, -y)
    lines = [((y[b] - y[a]) / (x[b] - x[a]), x[a], y[a]) for a, b in itertools.pairwise(hull)]
    return [(slope, at - slope * start) for slope, start, at in lines] or [(0.0, y[0])]


def optimum_by_linprog(p: Problem, ranks: np.ndarray, limits: np.ndarray) -> float:
    """Least summed error for a placement. Variables: density and error of every head, ceiling of every layer."""
    layers, heads, _ = p["curves"].shape
    count, size = layers * heads, heads // p["num_groups"]
    real = [h for h in range(count) if not p["inert"].ravel()[h]]
    rows, bounds = [], []
    for h in real:
        for slope, offset in hull_lines(p["curves"].reshape(count, -1)[h], p["densities"], p["min_density"]):
            row = np.zeros(2 * count + layers)
            row[h], row[count + h] = slope, -1.0
            rows.append(row)
            bounds.append(-offset)
    for layer, rank in itertools.product(range(layers), range(p["num_ranks"])):
        row = np.zeros(2 * count + layers)
        for h in real:
            row[h] = h // heads == layer and ranks[layer, h % heads // size] == rank
        row[2 * count + layer] = -1.0
        rows.append(row)
        bounds.append(0.0)
    for chosen in [np.eye(layers)[i] for i in range(layers)] if p["scope"] == "layer" else [np.ones(layers)]:
        rows.append(np.concatenate([np.zeros(2 * count), chosen]))
        bounds.append(float(chosen @ limits))
    goal = np.zeros(2 * count + layers)
    goal[[count + h for h in real]] = 1.0
    limits_of = [(p["min_density"], 1.0)] * count + [(0.0, None)] * count + [(0.0, None)] * layers
    answer = linprog(goal, A_ub=np.array(rows), b_ub=bounds, bounds=limits_of, method="highs")
    assert answer.success
    return float(answer.fun)


GRID = 2.0**40


@st.composite
def problems(draw: Any, layers: int = 3, most_groups: int = 6) -> Problem:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks = draw(st.integers(1, 3))
    groups = ranks * draw(st.integers(1, most_groups // ranks))
    heads = groups * draw(st.integers(1, 2))
    layers = draw(st.integers(1, layers))
    points = draw(st.integers(2, 5))
    densities = np.append(np.sort(rng.choice(np.arange(1, 100), points - 1, replace=False)) / 100, 1.0)
    falls = rng.exponential(size=(layers, heads, points)) * 10 ** rng.uniform(-2, 1, (layers, heads, 1))
    falls *= rng.random(falls.shape) < 0.8
    curves = np.ascontiguousarray(np.cumsum(falls[..., ::-1], axis=-1)[..., ::-1])
    total = draw(st.floats(0.02, 1.0))
    inert = np.zeros((layers, heads), dtype=bool)
    if draw(st.booleans()) and groups > 1:
        inert[:, : heads // groups] = True
    return {
        "curves": curves,
        "densities": densities,
        "total_density": total,
        "num_ranks": ranks,
        "num_groups": groups,
        "min_density": draw(st.sampled_from([0.0, 0.5, 1.0])) * total,
        "scope": draw(st.sampled_from(["model", "layer"])),
        "inert": inert,
    }


def solve(p: Problem, **more: Any) -> Any:
    arguments = p | more
    positional = [arguments.pop(name) for name in ("curves", "densities", "total_density", "num_ranks")]
    return allocate_balance_aware(*positional, **arguments)


def slowest(p: Problem, density: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """[num_layers], summed density of the slowest rank."""
    groups = np.where(p["inert"], 0.0, density).reshape(len(density), p["num_groups"], -1).sum(axis=2)
    return np.max([np.where(ranks == rank, groups, 0.0).sum(axis=1) for rank in range(p["num_ranks"])], axis=0)


def splits(groups: int, ranks: int) -> Iterator[list[int]]:
    """Every placement in equal counts, ranks named by their lowest group."""
    for row in itertools.product(range(ranks), repeat=groups):
        names = list(dict.fromkeys(row))
        if names == sorted(names) and all(row.count(rank) == groups // ranks for rank in range(ranks)):
            yield list(row)


@settings(max_examples=120, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_for_a_placement_the_linear_programme_is_reached(p: Problem, seed: int, part: float) -> None:
    rng = np.random.default_rng(seed)
    layers, heads, _ = p["curves"].shape
    options = list(splits(p["num_groups"], p["num_ranks"]))
    ranks = np.array([options[rng.integers(len(options))] for _ in range(layers)], dtype=np.int32)
    least = slowest(p, np.full((layers, heads), p["min_density"]), ranks)
    limits = least + part * rng.random(layers) * (slowest(p, np.ones((layers, heads)), ranks) - least)
    found = solve(p, group_to_rank=ranks, slowest_load=limits)
    best = optimum_by_linprog(p, ranks, limits)
    assert found.total_error == pytest.approx(best, rel=1e-7, abs=1e-7 * p["curves"].max())
    np.testing.assert_array_equal(found.group_to_rank, ranks)
    spent = slowest(p, found.density, ranks)
    np.testing.assert_allclose(found.slowest_load, spent, atol=1e-9)
    if p["scope"] == "layer":
        assert (spent <= limits + 1e-9).all()
    assert spent.sum() <= limits.sum() + 1e-9
    assert found.density[~p["inert"]].min() >= p["min_density"]
    assert (found.density[p["inert"]] == p["min_density"]).all()
    # What the densities say, head by head: the optimum again, independently of total_error.
    reached = 0.0
    for curve, density in zip(p["curves"][~p["inert"]], found.density[~p["inert"]], strict=True):
        reached += max(
            slope * density + offset for slope, offset in hull_lines(curve, p["densities"], p["min_density"])
        )
    assert reached == pytest.approx(best, rel=1e-7, abs=1e-7 * p["curves"].max())


@settings(max_examples=150, deadline=None)
@given(problems(most_groups=12))
def test_never_worse_than_the_two_solved_apart(p: Problem) -> None:
    options = {name: p[name] for name in ("min_density", "scope", "inert")}
    apart = allocate_budgets(p["curves"], p["densities"], p["total_density"], objective="min_error", **options)
    groups = np.where(p["inert"], 0.0, apart.density).reshape(len(apart.density), p["num_groups"], -1).sum(axis=2)
    # On the core's own grid: where there are more than 8 groups, other roundings can place nearly equal loads worse.
    placed = place_heads(np.rint(groups * GRID).astype(np.int64), p["num_ranks"])
    together = solve(p)
    assert apart.total_error is not None
    assert together.total_error <= apart.total_error * (1 + 1e-9) + 1e-9 * p["curves"].max()
    before, after = np.asarray(placed.rank_loads).max(axis=1) / GRID, together.slowest_load
    assert after.sum() <= before.sum() + 1e-6
    if p["scope"] == "layer":
        assert (after <= before + 1e-6).all()
    for row in together.group_to_rank:
        assert sorted(row.tolist()) == sorted(list(range(p["num_ranks"])) * (p["num_groups"] // p["num_ranks"]))
    again = solve(p)
    assert again.density.tobytes() == together.density.tobytes()
    assert again.group_to_rank.tobytes() == together.group_to_rank.tobytes()


def random_problem(seed: int, layers: int, groups: int, ranks: int) -> Problem:
    rng = np.random.default_rng(seed)
    densities = np.array([0.1, 0.3, 0.6, 1.0])
    falls = rng.exponential(size=(layers, 2 * groups, 4)) * 10 ** rng.uniform(-1, 1, (layers, 2 * groups, 1))
    return {
        "curves": np.ascontiguousarray(np.cumsum(falls[..., ::-1], axis=-1)[..., ::-1]),
        "densities": densities,
        "total_density": 0.3,
        "num_ranks": ranks,
        "num_groups": groups,
        "min_density": 0.05,
        "scope": "model",
        "inert": np.zeros((layers, 2 * groups), dtype=bool),
    }


@pytest.mark.parametrize(
    ("layers", "groups", "ranks", "seeds"), [(1, 8, 4, 8), (1, 6, 3, 12), (2, 6, 2, 6), (3, 4, 2, 12)]
)
def test_against_brute_force_over_placements(layers: int, groups: int, ranks: int, seeds: int) -> None:
    ours, best, start = [], [], []
    for seed in range(seeds):
        p = random_problem(seed, layers, groups, ranks)
        apart = allocate_budgets(
            p["curves"], p["densities"], p["total_density"], min_density=0.05, objective="min_error"
        )
        own = apart.density.reshape(layers, groups, 2).sum(axis=2)
        placed = place_heads(own, ranks)
        limits = np.asarray(placed.rank_loads).max(axis=1)
        choices = itertools.product(splits(groups, ranks), repeat=layers)
        every = [
            solve(p, group_to_rank=np.array(choice, np.int32), slowest_load=limits).total_error for choice in choices
        ]
        ours.append(solve(p, slowest_load=limits).total_error)
        best.append(min(every))
        start.append(solve(p, group_to_rank=placed.head_to_rank, slowest_load=limits).total_error)
        assert ours[-1] >= best[-1] * (1 - 1e-9)
        assert ours[-1] <= start[-1] * (1 + 1e-9)
    if layers == 1:  # the ceiling is the total: every split is compared at it
        np.testing.assert_allclose(ours, best, rtol=1e-9)
    gained, possible = sum(start) - sum(ours), sum(start) - sum(best)
    assert possible > 0.005 * sum(start)
    assert gained >= 0.9 * possible


def test_one_rank_is_the_plain_allocation() -> None:
    p = random_problem(3, 3, 4, 1)
    plain = allocate_budgets(p["curves"], p["densities"], 0.3, min_density=0.05, objective="min_error")
    found = solve(p)
    assert found.total_error == pytest.approx(plain.total_error, rel=1e-9)
    np.testing.assert_allclose(found.density, plain.density, atol=1e-6)


def test_more_to_spend_is_never_worse() -> None:
    p = random_problem(4, 4, 8, 4)
    limits = solve(p).slowest_load
    errors = [solve(p, slowest_load=share * limits).total_error for share in (0.5, 0.8, 1.0, 1.3)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ranks": 3}, "num_ranks: got 3, expected a divisor of num_groups=4"),
        ({"num_ranks": 0}, "num_ranks: got 0"),
        ({"num_groups": 3}, "num_groups: got 3, expected a divisor of num_heads=8"),
        ({"num_groups": 0}, "num_groups: got 0"),
        ({"group_to_rank": np.zeros((2, 4), np.int32)}, r"group_to_rank\[0, 2\]: got 0, expected a rank below"),
        ({"group_to_rank": np.full((2, 4), -1, np.int32)}, r"group_to_rank\[0, 0\]: got -1"),
        ({"group_to_rank": np.full((2, 4), 2, np.int32)}, r"group_to_rank\[0, 0\]: got 2"),
        ({"group_to_rank": np.zeros((2, 3), np.int32)}, r"group_to_rank: got shape \(2, 3\), expected shape \(2, 4\)"),
        ({"group_to_rank": np.zeros((2, 4))}, "group_to_rank: got float64"),
        ({"slowest_load": np.array([1.0, np.nan])}, r"slowest_load\[1\]: got nan"),
        ({"slowest_load": np.array([-1.0, 1.0])}, r"slowest_load\[0\]: got -1"),
        ({"slowest_load": np.array([9.0, 1.0])}, r"slowest_load\[0\]: got 9, expected a value in \[0, num_heads=8\]"),
        ({"slowest_load": np.ones(3)}, r"slowest_load: got shape \(3,\)"),
        ({"scope": "head"}, "scope: got 'head'"),
        ({"total_density": 2.0}, "total_density: got 2"),
        ({"inert": np.ones((2, 8), bool)}, "inert: got every head inert"),
    ],
)
def test_bad_input_names_argument_got_expected(change: Problem, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        solve(random_problem(0, 2, 4, 2), **change)
