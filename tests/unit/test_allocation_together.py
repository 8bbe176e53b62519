# SPDX-License-Identifier: Apache-2.0
"""Balance-aware plans: never worse than the two solved apart, on every length and at the reference step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from synthetic import LENGTHS, is_one_sentence, make_profile, make_serving_plan, make_shape

from shplb.balance_gain import balance_gain
from shplb.container import METADATA_KEY, content_hash
from shplb.plan import ServingPlan
from shplb.planning import PlanMaker, PlanningError, make_plan
from shplb.prediction import placed_ms
from shplb.steps import STEPS

SHAPE = make_shape(layers=6, kv_heads=8, group=2)


def makers(profile: Any, **options: Any) -> tuple[PlanMaker, PlanMaker]:
    return PlanMaker(profile, **options), PlanMaker(profile, **options, balance_aware=True)


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize(("tp_size", "inert"), [(2, ()), (4, ()), (8, ()), (2, (3,)), (4, (0, 5))])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.9])
def test_never_worse_at_any_length(scope: str, tp_size: int, inert: tuple[int, ...], density: float) -> None:
    profile = make_profile(make_shape(layers=6, kv_heads=8, group=2, inert=inert), seed=tp_size)
    apart, together = makers(profile, tp_size=tp_size, scope=scope)
    a, b = apart.allocate(density), together.allocate(density)
    assert a.error is not None
    assert b.error is not None
    assert (b.error <= a.error).all()
    before, after = apart.plan_of(a, density), together.plan_of(b, density)
    assert after.rank_loads(b.loads).max(axis=1).sum() <= before.rank_loads(a.loads).max(axis=1).sum()
    for row in after.physical_to_logical:
        assert sorted(row.tolist()) == list(range(8))
    assert b.budgets.min() > 0
    assert b.budgets.max() <= 1


@pytest.mark.parametrize("tp_size", [4, 8])
def test_ranks_that_would_wait_are_filled(tp_size: int) -> None:
    apart, together = makers(make_profile(SHAPE), tp_size=tp_size)
    a, b = apart.allocate(0.1), together.allocate(0.1)
    assert a.error is not None
    assert b.error is not None
    assert b.error[-1] < a.error[-1]
    assert b.budgets[:, :, -1].mean() > a.budgets[:, :, -1].mean()


def test_error_is_that_of_the_budgets() -> None:
    """On convex curves the hull is the curve, so numpy can say what the budgets lose."""
    profile = make_profile(SHAPE)
    made = makers(profile, tp_size=4)[1].allocate(0.3)
    curves = profile.mean_curves("error")
    assert made.error is not None
    for index in range(1, len(LENGTHS)):  # at the shortest, floors lie on the line below the first point
        lost = sum(
            float(np.interp(made.budgets[at][index], profile.densities, curves[at][index]))
            for at in np.ndindex(made.budgets.shape[:2])
        )
        assert made.error[index] == pytest.approx(lost, rel=0.02)


def test_one_rank_has_nothing_to_balance() -> None:
    apart, together = makers(make_profile(SHAPE), tp_size=1)
    np.testing.assert_array_equal(apart.allocate(0.2).budgets, together.allocate(0.2).budgets)


def test_other_objectives_are_refused() -> None:
    with pytest.raises(PlanningError, match="--balance-aware minimises output error, but --objective is max_min"):
        PlanMaker(make_profile(), tp_size=2, objective="max_min", balance_aware=True)


def test_the_file_says_so(tmp_path: Path) -> None:
    plan = make_plan(make_profile(SHAPE), tp_size=4, density=0.2, balance_aware=True)
    plan.save(tmp_path / "plan")
    loaded = ServingPlan.load(tmp_path / "plan")
    assert loaded.balance_aware
    assert (loaded.objective, loaded.density) == ("min_error", 0.2)
    assert loaded.hash == plan.hash
    make_plan(make_profile(SHAPE), tp_size=4, density=0.2, balance_aware=True).save(tmp_path / "again")
    assert (tmp_path / "plan").read_bytes() == (tmp_path / "again").read_bytes()


def test_files_from_before_the_field_still_load(tmp_path: Path) -> None:
    make_serving_plan().save(tmp_path / "plan")
    with safe_open(tmp_path / "plan", framework="numpy") as stream:
        facts = json.loads(stream.metadata()[METADATA_KEY])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    del facts["balance_aware"]
    facts["content_hash"] = content_hash(tensors, facts)
    save_file(tensors, tmp_path / "old", metadata={METADATA_KEY: json.dumps(facts, sort_keys=True)})
    assert not ServingPlan.load(tmp_path / "old").balance_aware


def test_gain_compares_at_the_same_work_and_at_the_same_error() -> None:
    profile = make_profile(SHAPE)
    apart, together = makers(profile, tp_size=4)
    made = together.allocate(0.1)
    gain = balance_gain(together, made, 0.1, 32768)
    assert made.error is not None
    assert gain.together.error == made.error[-1] < gain.apart.error
    assert gain.together.slowest_pages <= gain.apart.slowest_pages
    assert gain.together.attention_ms == placed_ms(together.plan(0.1), 32768)
    assert gain.apart.attention_ms == placed_ms(apart.plan(0.1), 32768)
    assert gain.apart.mean_density == pytest.approx(0.1, abs=1e-6)
    assert gain.density_for_same_error is not None
    assert gain.same_error is not None
    assert gain.density_for_same_error > 0.1
    assert gain.same_error.error <= gain.together.error
    before = apart.allocate(gain.density_for_same_error - 1 / STEPS)
    assert before.error is not None
    assert before.error[-1] > gain.together.error
    assert gain.same_error.slowest_pages > gain.apart.slowest_pages


def test_refusals_are_one_sentence() -> None:
    with pytest.raises(PlanningError) as caught:
        makers(make_profile(), tp_size=2, objective="uniform")
    assert is_one_sentence(caught.value)
