# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from shplb import InvalidArgument, allocate_budgets


def concave_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the upper concave hull of (x, y)."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[b]) > (y[i] - y[b]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return np.array(hull)


def optimum_by_linprog(gains: np.ndarray, densities: np.ndarray, total: float, floor: float) -> float:
    """Largest sum of gains [heads, points] on concave hulls over [floor, 1], as a linear programme.

    Variables: density and gain of every head; gain lies below every hull segment's line.
    """
    heads = len(gains)
    rows, limits = [], []
    for head in range(heads):
        x = np.concatenate([[floor], densities[densities > floor]])
        y = np.interp(x, np.concatenate([[0.0], densities]), gains[head])
        hull = concave_points(x, y)
        for a, b in itertools.pairwise(hull):
            slope = (y[b] - y[a]) / (x[b] - x[a])
            row = np.zeros(2 * heads)
            row[head], row[heads + head] = -slope, 1.0
            rows.append(row)
            limits.append(y[a] - slope * x[a])
    if not rows:  # the floor is 1
        return float(gains[:, -1].sum())
    spent = np.concatenate([np.ones(heads), np.zeros(heads)])[None]
    answer = linprog(
        np.concatenate([np.zeros(heads), -np.ones(heads)]),
        A_ub=np.array(rows),
        b_ub=limits,
        A_eq=spent,
        b_eq=[total * heads],
        bounds=[(floor, 1.0)] * heads + [(None, None)] * heads,
        method="highs",
    )
    assert answer.success
    return -answer.fun


@st.composite
def problems(draw, increasing=False):
    layers, heads, points = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    densities = np.append(np.sort(rng.choice(np.arange(1, 100), points - 1, replace=False)) / 100, 1.0)
    steps = rng.exponential(size=(layers, heads, points)) * rng.choice([0.02, 1.0, 5.0], (layers, heads, points))
    if not increasing:
        steps *= rng.random((layers, heads, points)) < 0.7
    steps += 1e-6 * increasing
    recovery = np.cumsum(steps, axis=-1)
    recovery /= np.maximum(recovery[..., -1:], 1e-9)
    total = draw(st.floats(0.01, 1.0))
    floor = draw(st.sampled_from([0.0, 0.5, 1.0])) * draw(st.floats(0, 1)) * total
    return np.minimum(recovery, 1.0), densities, total, floor


def with_zero(recovery: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((*recovery.shape[:-1], 1)), recovery], axis=-1)


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(["max_mean", "min_error"]), st.sampled_from(["model", "layer"]))
def test_sum_objectives_reach_the_linear_programme(problem, objective, scope):
    recovery, densities, total, floor = problem
    scale = 123.0
    curves = recovery if objective == "max_mean" else scale * (1 - recovery)
    zero = None if objective == "max_mean" else np.full(recovery.shape[:2], scale)
    budgets = allocate_budgets(curves, densities, total, min_density=floor, scope=scope, objective=objective, zero=zero)
    groups = with_zero(recovery)
    groups = groups.reshape(1, -1, groups.shape[-1]) if scope == "model" else groups
    best = sum(optimum_by_linprog(g, densities, total, floor) for g in groups)
    heads = recovery.shape[0] * recovery.shape[1]
    assert budgets.density.mean() == pytest.approx(total, abs=1e-9)
    assert budgets.density.min() >= floor
    if objective == "min_error":
        assert budgets.total_error == pytest.approx(scale * (heads - best), abs=1e-6)
        assert budgets.worst_recovery is None
    if scope == "layer":
        np.testing.assert_allclose(budgets.density.mean(axis=1), total, atol=1e-9)
    # What the densities say, on the hulls: the optimum again, independently of total_error.
    reached = 0.0
    flat = with_zero(recovery).reshape(heads, -1)
    for head, density in enumerate(budgets.density.ravel()):
        x = np.concatenate([[floor], densities[densities > floor]])
        y = np.interp(x, np.concatenate([[0.0], densities]), flat[head])
        hull = concave_points(x, y)
        reached += np.interp(density, x[hull], y[hull])
    assert reached == pytest.approx(best, abs=1e-7)


def leximin_by_bisection(recovery: np.ndarray, densities: np.ndarray, total: float, floor: float) -> np.ndarray:
    """Water level on strictly increasing curves [heads, points]: recovery of each head at the optimum."""
    x = np.concatenate([[0.0], densities])

    def densities_at(level):
        return np.array([max(floor, np.interp(min(level, y[-1]), y, x)) for y in recovery])

    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if densities_at(middle).sum() <= total * len(recovery):
            low = middle
        else:
            high = middle
    return np.array([np.interp(d, x, y) for d, y in zip(densities_at(low), recovery, strict=True)])


@settings(max_examples=150, deadline=None)
@given(problems(increasing=True))
def test_max_min_is_the_water_level(problem):
    recovery, densities, total, floor = problem
    budgets = allocate_budgets(recovery, densities, total, min_density=floor, objective="max_min")
    flat = with_zero(recovery).reshape(-1, len(densities) + 1)
    x = np.concatenate([[0.0], densities])
    ours = np.array([np.interp(d, x, y) for d, y in zip(budgets.density.ravel(), flat, strict=True)])
    expected = leximin_by_bisection(flat, densities, total, floor)
    np.testing.assert_allclose(np.sort(ours), np.sort(expected), atol=1e-6)
    assert budgets.worst_recovery == pytest.approx(ours.min(), abs=1e-9)
    assert budgets.mean_density == pytest.approx(total, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_max_min_lifts_the_worst_head_as_far_as_possible_on_any_curve(problem):
    recovery, densities, total, floor = problem
    budgets = allocate_budgets(recovery, densities, total, min_density=floor, objective="max_min")
    flat = with_zero(recovery).reshape(-1, len(densities) + 1)
    x = np.concatenate([[0.0], densities])
    level = budgets.worst_recovery + 1e-6
    if level > flat[:, -1].min():
        return
    needed = 0.0
    for y in flat:
        i = int(np.argmax(y >= level))
        needed += max(floor, x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1]))
    assert needed >= total * len(flat) - 1e-9


def test_after_a_saturated_head_the_next_worst_is_raised():
    densities = np.array([0.5, 1.0])
    recovery = np.array([[[0.3, 0.3], [0.6, 1.0], [0.5, 1.0]]])
    budgets = allocate_budgets(recovery, densities, 0.6, objective="max_min")
    # The first head saturates at 0.5; 1.3 is left for the others, at one common level.
    assert budgets.density[0, 0] == 0.5
    levels = [np.interp(d, [0, 0.5, 1], [0, *r]) for d, r in zip(budgets.density[0, 1:], recovery[0, 1:], strict=True)]
    assert levels[0] == pytest.approx(levels[1], abs=1e-9)
    assert budgets.mean_density == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("objective", ["min_error", "max_mean", "max_min", "uniform"])
def test_equal_heads_get_equal_densities_and_order_does_not_matter(objective):
    rng = np.random.default_rng(3)
    densities = np.array([0.05, 0.1, 0.3, 1.0])
    curves = np.sort(rng.random((2, 6, 4)), axis=-1)
    curves[..., -1] = 1.0
    curves[0, 3] = curves[0, 1]
    curves = 1 - curves if objective == "min_error" else curves
    budgets = allocate_budgets(curves, densities, 0.27, min_density=0.02, objective=objective)
    assert budgets.density[0, 3] == pytest.approx(budgets.density[0, 1], abs=1e-9)
    order = rng.permutation(6)
    moved = allocate_budgets(
        np.ascontiguousarray(curves[:, order]), densities, 0.27, min_density=0.02, objective=objective
    )
    np.testing.assert_allclose(moved.density, budgets.density[:, order], atol=1e-9)


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("objective", ["min_error", "max_mean", "max_min", "uniform"])
def test_inert_heads_count_nowhere(objective, scope):
    rng = np.random.default_rng(4)
    densities = np.array([0.1, 0.5, 1.0])
    curves = np.sort(rng.random((3, 5, 3)), axis=-1)
    curves = np.ascontiguousarray(curves[..., ::-1]) if objective == "min_error" else curves
    inert = np.zeros((3, 5), dtype=bool)
    inert[:, 4] = True
    curves[:, 4] = 0.0
    padded = allocate_budgets(curves, densities, 0.3, min_density=0.05, scope=scope, objective=objective, inert=inert)
    real = allocate_budgets(
        np.ascontiguousarray(curves[:, :4]), densities, 0.3, min_density=0.05, scope=scope, objective=objective
    )
    np.testing.assert_array_equal(padded.density[:, :4], real.density)
    assert (padded.density[:, 4] == 0.05).all()
    assert padded.mean_density == real.mean_density == pytest.approx(0.3, abs=1e-12)
    assert padded.worst_recovery == real.worst_recovery


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(["min_error", "max_mean", "max_min"]), st.floats(0, 1))
def test_objective_is_monotone_in_the_total(problem, objective, part):
    recovery, densities, total, floor = problem
    curves = 1 - recovery if objective == "min_error" else recovery
    less = max(floor, total * max(part, 0.01))
    few = allocate_budgets(curves, densities, less, min_density=floor, objective=objective)
    many = allocate_budgets(curves, densities, total, min_density=floor, objective=objective)
    if objective == "min_error":
        assert many.total_error <= few.total_error + 1e-9
    elif objective == "max_min":
        assert many.worst_recovery >= few.worst_recovery - 1e-9
    else:
        assert (many.density >= few.density - 1e-9).all()


@pytest.mark.parametrize("objective", ["min_error", "max_mean", "max_min", "uniform"])
def test_a_total_of_one_is_dense(objective):
    curves = np.zeros((2, 3, 2)) if objective == "min_error" else np.ones((2, 3, 2))
    budgets = allocate_budgets(curves, np.array([0.2, 1.0]), 1.0, objective=objective)
    assert (budgets.density == 1.0).all()


def test_zero_is_where_the_curve_starts():
    densities = np.array([0.5, 1.0])
    curves = np.array([[[1.0, 0.0], [1.0, 0.0]]])
    zero = np.array([[10.0, 1.0]])
    budgets = allocate_budgets(curves, densities, 0.5, objective="min_error", zero=zero)
    # Head 0 falls by 18 and then 2 per unit of density; the flat start of head 1 is bridged by its hull, at 1.
    assert budgets.density.tolist() == [[1.0, 0.0]]
    assert budgets.total_error == pytest.approx(1.0, abs=1e-9)
    straight = allocate_budgets(curves, densities, 0.5, objective="min_error")
    assert straight.density.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": [[[1.0]]]}, "curves: got list"),
        ({"curves": np.ones((1, 2, 2), np.float32)}, "curves: got float32"),
        ({"curves": np.ones((1, 2, 3))}, r"curves: got shape \(1, 2, 3\), expected shape \(1, 2, 2\)"),
        ({"curves": np.full((1, 2, 2), 1.5)}, r"curves\[0, 0, 0\]: got 1.5, expected a recovery in \[0, 1\]"),
        ({"curves": np.full((1, 2, 2), np.nan)}, r"curves\[0, 0, 0\]: got nan"),
        ({"curves": np.full((1, 2, 2), -1.0), "objective": "min_error"}, "expected a finite error >= 0"),
        ({"curves": np.full((1, 2, 2), np.inf), "objective": "min_error"}, "got inf"),
        ({"curves": np.ones((0, 2, 2))}, "num_layers: got 0"),
        ({"curves": np.ones((1, 0, 2))}, "num_heads: got 0"),
        ({"densities": np.array([0.5, 0.9])}, r"densities\[-1\]: got 0.9, expected 1"),
        ({"densities": np.array([0.5, 0.5])}, r"densities\[1\]: got 0.5"),
        ({"densities": np.array([0.0, 1.0])}, r"densities\[0\]: got 0"),
        ({"densities": np.array([np.nan, 1.0])}, r"densities\[0\]: got nan"),
        ({"total_density": 0.0}, "total_density: got 0"),
        ({"total_density": 1.1}, "total_density: got 1.1"),
        ({"total_density": float("nan")}, "total_density: got nan"),
        ({"min_density": 0.6}, r"min_density: got 0.6, expected a value in \[0, total_density=0.5\]"),
        ({"min_density": -0.1}, "min_density: got -0.1"),
        ({"scope": "head"}, "scope: got 'head'"),
        ({"objective": "best"}, "objective: got 'best'"),
        ({"zero": np.ones((1, 2))}, "zero: got an array, expected None unless objective is 'min_error'"),
        ({"zero": np.ones((1, 3)), "objective": "min_error"}, r"zero: got shape \(1, 3\), expected shape \(1, 2\)"),
        ({"zero": np.full((1, 2), -1.0), "objective": "min_error"}, r"zero\[0, 0\]: got -1"),
        ({"inert": np.ones((1, 2), bool)}, "inert: got every head inert"),
        ({"inert": np.ones((1, 2), np.uint8)}, "inert: got uint8"),
    ],
)
def test_bad_input_names_argument_got_expected(change, message):
    arguments = {"curves": np.ones((1, 2, 2)), "densities": np.array([0.5, 1.0]), "total_density": 0.5} | change
    positional = [arguments.pop(name) for name in ("curves", "densities", "total_density")]
    with pytest.raises(InvalidArgument, match=message):
        allocate_budgets(*positional, **arguments)
