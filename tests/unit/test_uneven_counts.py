# SPDX-License-Identifier: Apache-2.0
"""Times that the bench of uneven counts puts together are those of the step planner, where that can tell them."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench_replicas import GROUPS, rows_of, stretched
from uneven_counts import LayerTimes, counts_of, makespans_of, place_unevenly, uneven_times

from shplb.plan_planner import planner_of
from shplb.planning import make_plan
from shplb.profile import HeadProfile

PROFILE = Path(__file__).parents[2] / "docs" / "example" / "smollm2.profile.safetensors"
TOKENS = 40_000


@pytest.fixture(scope="module")
def plan():
    return stretched(make_plan(HeadProfile.load(PROFILE), tp_size=1, density=0.1), seed=1)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_equal_counts_take_what_the_planner_says(plan, ranks):
    plan = msgspec.structs.replace(plan, tp_size=ranks)
    pages = np.asarray(plan.budget_table(TOKENS).pages)
    order = plan.own_order
    ours = uneven_times(plan, pages, order // (GROUPS // ranks), TOKENS)
    theirs = LayerTimes.of(makespans_of(planner_of(plan, pages, order, ranks), TOKENS))
    np.testing.assert_array_equal(ours.slowest, theirs.slowest)
    np.testing.assert_array_equal(ours.total, theirs.total)


def test_counts_differ_where_that_gains_and_ranks_hold_about_as_many_over_all_layers():
    loads = np.tile(np.array([[50, 10, 10, 10, 10, 10, 10, 10]]), (6, 1))
    counts = counts_of(place_unevenly(loads, 2), 2)
    assert np.sort(counts, axis=1).tolist() == [[2, 6]] * 6
    assert counts.sum(axis=0).tolist() == [24, 24]
    assert counts_of(place_unevenly(np.full((3, 8), 7), 4), 4).tolist() == [[2] * 4] * 3


def test_rows_of_uneven_counts_have_their_prices(plan):
    skewed = plan.loads.copy()
    skewed[:, 0] = skewed.sum(axis=1)
    row = next(row for row in rows_of(msgspec.structs.replace(plan, loads=skewed), 2, 8192) if row["heads"] == "uneven")
    layers = plan.model.num_layers
    assert row["uneven_layers"] == layers
    assert row["kv_memory_factor"] == row["decode_factor"] == 7 / 4
    assert row["kv_memory_factor_by_layer"] == 1.0
    assert row["kv_bytes_per_token"] == 7 * 2 * 2 * 128 * layers
