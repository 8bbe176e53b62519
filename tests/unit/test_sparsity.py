# SPDX-License-Identifier: Apache-2.0
"""The sparsity rule and its budget table against plain loops."""

import math
from typing import Any

import numpy as np
import pytest
from synthetic import LENGTHS, make_profile, make_shape

from shplb.allocation import allocate_apart, group_loads
from shplb.sparsity import BudgetTable, SparsityRule


def kept_pages(shares: np.ndarray, end_row: int, rule: SparsityRule, lengths: tuple[int, ...] = LENGTHS) -> int:
    """Pages one head keeps for a block that ends at ``end_row``, from the definition."""
    visible = math.ceil(end_row / 64)
    if visible * 64 <= rule.dense_below_tokens:
        return visible
    x = math.log2(visible * 64)
    knots = [math.log2(length) for length in lengths]
    if x <= knots[0]:
        share = shares[0]
    elif x >= knots[-1]:
        share = shares[-1]
    else:
        i = next(i for i in range(len(knots) - 1) if knots[i] <= x < knots[i + 1])
        t = (x - knots[i]) / (knots[i + 1] - knots[i])
        share = shares[i] * (1 - t) + shares[i + 1] * t
    return min(max(math.ceil(share * visible - 1e-9), rule.floor_pages), visible)


def test_loads_against_a_plain_loop() -> None:
    profile = make_profile(make_shape(layers=2, kv_heads=2, group=2))
    budgets = allocate_apart(profile, profile.rule, 0.2, 1, objective="min_error", scope="model").budgets
    rule, longest = profile.rule, LENGTHS[-1]
    loads = group_loads(budgets, profile, rule)
    for layer in range(2):
        expected = [0, 0]
        for head in range(4):
            for start in range(0, longest, rule.query_block):
                end = min(start + rule.query_block, longest)
                expected[head // 2] += max(kept_pages(budgets[layer, head], end, rule), rule.num_forced(start, end))
        assert loads[layer].tolist() == expected


@pytest.mark.parametrize("lengths", [(2048,), (1000, 3000), LENGTHS])
def test_budget_table_against_a_plain_loop(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    budgets = rng.uniform(0.001, 1, (2, 3, len(lengths)))
    budgets[0, 0] = 0.07  # times 100 that is 7.000000000000001, and must not round up to 8
    rule = SparsityRule(query_block=128, dense_below_tokens=700, floor_pages=5)
    table = BudgetTable(budgets, np.array(lengths), rule, 20000)
    assert table.pages.dtype == np.int32
    assert table.pages.shape == (2, 3, 314)
    for layer, head in np.ndindex(2, 3):
        for visible in range(1, 314):
            expected = kept_pages(budgets[layer, head], visible * 64, rule, lengths)
            assert table.pages[layer, head, visible] == expected
    assert table.pages[0, 0, 100] == 7
    kept = table.keep(np.array([3, 100]), np.array([2, 99]))
    assert kept[0, 0].tolist() == [3, 99]


def test_forced_pages() -> None:
    rule = SparsityRule(query_block=128, sink_pages=2, local_pages=1)
    assert rule.forced_pages(0, 128) == (0, 0)
    assert rule.num_forced(0, 128) == 2
    assert rule.forced_pages(128, 256) == (1, 1)
    assert rule.num_forced(128, 256) == 4
    assert rule.forced_pages(1280, 1400) == (2, 19)
    assert rule.num_forced(1280, 1400) == 2 + 3


@pytest.mark.parametrize(
    "fields", [{"query_block": 0}, {"score_stride": 7}, {"score_stride": 0}, {"score": "x"}, {"sink_pages": -1}]
)
def test_impossible_rules(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|must be"):
        SparsityRule(**({"query_block": 128} | fields))
