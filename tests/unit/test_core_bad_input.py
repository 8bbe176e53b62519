# SPDX-License-Identifier: Apache-2.0
"""Arbitrary Python objects at the extension's door: a refusal that says what was expected, or a valid answer."""

import random

import numpy as np
import pytest

import shplb

ROUNDS = 4000
DTYPES = [np.int32, np.int64, np.float64, np.float32, np.uint8, np.bool_, object, np.complex128]


def any_array(rng: random.Random):
    shape = tuple(rng.choice([0, 1, 2, 3, 8]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 3, 4])))
    values = np.random.default_rng(rng.getrandbits(32)).integers(-1 if rng.random() < 0.3 else 0, 4, shape)
    array = values.astype(rng.choice(DTYPES[:3] * 4 + DTYPES))
    if array.dtype == np.float64 and array.size and rng.random() < 0.3:
        array.flat[0] = rng.choice([np.nan, np.inf, -np.inf, 1e308, 5e-324])
    if array.dtype == np.int64 and array.size and rng.random() < 0.2:
        array.flat[0] = rng.choice([2**63 - 1, -(2**63), 2**31])
    if array.ndim and rng.random() < 0.1:
        array = array[::-1]
    return array


def anything(rng: random.Random):
    return rng.choice(
        [
            lambda: any_array(rng),
            lambda: any_array(rng),
            lambda: any_array(rng),
            lambda: rng.choice([None, "auto", "", -1, 0, 1, 2, 3, 2**70, 0.5, float("nan"), [], [[1]], (), {}]),
        ]
    )()


def number(rng):
    return rng.choice([-1, 0, 1, 2, 3, 4, 8, 2**31, 2**62, 2**70, 0.1, 0.5, 1.0, float("nan"), None, "2"])


CALLS = {
    "place_heads": lambda rng: shplb.place_heads(anything(rng), number(rng), equal_count=rng.random() < 0.5),
    "allocate_budgets": lambda rng: shplb.allocate_budgets(
        anything(rng),
        rng.choice([np.array([0.5, 1.0]), np.array([1.0]), anything(rng)]),
        number(rng),
        min_density=rng.choice([0.0, number(rng)]),
        objective=rng.choice(["min_error", "max_min", "max_mean", "uniform", ""]),
        scope=rng.choice(["model", "layer", "x"]),
        inert=rng.choice([None, None, anything(rng)]),
    ),
    "allocate_balance_aware": lambda rng: shplb.allocate_balance_aware(
        anything(rng),
        rng.choice([np.array([0.5, 1.0]), np.array([1.0]), anything(rng)]),
        number(rng),
        number(rng),
        num_groups=number(rng),
        scope=rng.choice(["model", "layer", "x"]),
        inert=rng.choice([None, None, anything(rng)]),
        group_to_rank=rng.choice([None, anything(rng)]),
        slowest_load=rng.choice([None, anything(rng)]),
    ),
    "plan_work": lambda rng: shplb.plan_work(
        *(anything(rng) for _ in range(5)), np.zeros(256, np.uint8), num_ctas=number(rng), head_dim=128
    ),
    "step_planner": lambda rng: shplb.StepPlanner(
        num_kv_heads=number(rng), head_dim=128, keep_pages=anything(rng), slot_groups=anything(rng), rank=number(rng)
    ),
    "cost_model": lambda rng: shplb.CostModel(kv_tile_ns=number(rng), item_ns=number(rng)),
    "buffer_bytes": lambda rng: PLANNER.buffer_bytes(number(rng), number(rng)),
    "plan": lambda rng: PLANNER.plan(anything(rng), anything(rng), rng.choice([anything(rng), BUFFER])),
    "set_rank_speeds": lambda rng: PLANNER.set_rank_speeds(anything(rng)),
    "decode_loads": lambda rng: PLANNER.decode_loads(anything(rng)),
    "simulate": lambda rng: shplb.simulate(PLANNER, anything(rng), anything(rng), anything(rng)),
}
PLANNER = shplb.StepPlanner(
    num_kv_heads=2,
    head_dim=128,
    keep_pages=np.tile(np.arange(33, dtype=np.int32), (1, 2, 1)),
    slot_groups=np.array([[[0, 1]]], np.int32),
    rank=0,
)
BUFFER = np.zeros(1 << 16, np.uint8)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_refused_or_valid(name):
    rng = random.Random(name)
    refusals, wrong_types = [], []
    for _ in range(ROUNDS):
        try:
            CALLS[name](rng)
        except shplb.InvalidArgument as error:
            refusals.append(str(error))
        except shplb.Infeasible:
            pass
        except TypeError as error:
            wrong_types.append(str(error))
    assert refusals or wrong_types
    assert all(": got " in text and ", expected " in text for text in refusals)
    # A number or a string of the wrong type: pybind11 lists what it takes.
    assert all("incompatible" in text for text in wrong_types)
