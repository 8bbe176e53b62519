# SPDX-License-Identifier: Apache-2.0
"""HeadProfile and ServingPlan files, and the way from one to the other."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from synthetic import LENGTHS, assert_same, is_one_sentence, make_profile, make_serving_plan, make_shape

from shplb.allocation import allocate_apart
from shplb.container import FileFormatError
from shplb.model import Fingerprint
from shplb.plan import ServingPlan, expand_groups
from shplb.planning import PlanningError, count_bound, make_plan
from shplb.profile import HeadProfile
from shplb.sparsity import SparsityRule


def refused(path: Path, load: Callable[[Path], object]) -> str:
    with pytest.raises(FileFormatError) as caught:
        load(path)
    assert is_one_sentence(caught.value), caught.value
    return str(caught.value)


def test_profile_round_trip(tmp_path: Path) -> None:
    profile = make_profile(make_shape(inert=(3,)))
    profile.save(tmp_path / "p")
    assert_same(HeadProfile.load(tmp_path / "p"), profile)


def test_plan_round_trip(tmp_path: Path) -> None:
    plan = make_serving_plan()
    saved = plan.save(tmp_path / "p")
    loaded = ServingPlan.load(tmp_path / "p")
    assert_same(loaded, plan)
    assert loaded.hash == plan.hash
    assert saved == ServingPlan.load(tmp_path / "p").save(tmp_path / "q")


def test_plan_hash_covers_every_field() -> None:
    plan = make_serving_plan()
    hashes = {plan.hash}
    for name in plan.__struct_fields__:
        old = getattr(plan, name)
        new: Any = {
            "model": make_shape(layers=4),
            "fingerprint": Fingerprint("other"),
            "rule": SparsityRule(128),
            "versions": {},
        }.get(name, f"{old}x" if isinstance(old, str) else None)
        hashes.add(msgspec.structs.replace(plan, **{name: old + 1 if new is None else new}).hash)
    assert len(hashes) == 1 + len(plan.__struct_fields__)


def test_kinds_are_not_mixed_up(tmp_path: Path) -> None:
    make_profile().save(tmp_path / "profile")
    assert "is a HeadProfile, but a ServingPlan is needed" in refused(tmp_path / "profile", ServingPlan.load)


def put(array: np.ndarray, value: object, at: tuple[int, ...] = (0,)) -> np.ndarray:
    copy = array.copy()
    copy[at] = value
    return copy


_PROFILE = make_profile()
_BAD_PROFILES: list[tuple[str, np.ndarray]] = [
    ("lengths", put(_PROFILE.lengths, 0)),
    ("lengths", _PROFILE.lengths[::-1].copy()),
    ("lengths", put(_PROFILE.lengths, LENGTHS[1])),
    ("densities", put(_PROFILE.densities, 0.0)),
    ("densities", put(_PROFILE.densities, math.nan)),
    ("densities", put(_PROFILE.densities, 0.9, (-1,))),
    ("densities", _PROFILE.densities[::-1].copy()),
    ("rows", put(_PROFILE.rows, -1)),
    ("rows", put(_PROFILE.rows, 0, (slice(None), 1))),
    ("error", put(_PROFILE.error, -1e-3)),
    ("error", put(_PROFILE.error, math.nan)),
    ("error", put(_PROFILE.error, math.inf)),
    ("recovery", put(_PROFILE.recovery, -1e-3)),
    ("recovery", put(_PROFILE.recovery, 1.1)),
    ("recovery", put(_PROFILE.recovery, math.nan)),
    ("recovery", _PROFILE.error / _PROFILE.error.max()),
    ("recovery", _PROFILE.recovery[..., ::-1].copy()),
    ("error", _PROFILE.recovery),
    ("error", _PROFILE.error[..., ::-1].copy()),
    ("importance", put(_PROFILE.importance, -1.0, (0, 0))),
    ("importance", put(_PROFILE.importance, math.nan, (0, 0))),
    ("importance", 2 * _PROFILE.importance),
]


@pytest.mark.parametrize(("name", "array"), _BAD_PROFILES)
def test_profile_arrays_out_of_range(tmp_path: Path, name: str, array: np.ndarray) -> None:
    msgspec.structs.replace(_PROFILE, **{name: array}).save(tmp_path / "p")
    assert f"'{name}' holds values out of range" in refused(tmp_path / "p", HeadProfile.load)


_PLAN = make_serving_plan()
_BAD_PLANS: list[tuple[str, Any]] = [
    ("lengths", put(_PLAN.lengths, -5)),
    ("lengths", _PLAN.lengths[::-1].copy()),
    ("budgets", put(_PLAN.budgets, 0.0, (0, 0, 0))),
    ("budgets", put(_PLAN.budgets, 1.01, (0, 0, 0))),
    ("budgets", put(_PLAN.budgets, math.nan, (2, 7, 2))),
    ("physical_to_logical", put(_PLAN.physical_to_logical, 4, (2, 3))),
    ("physical_to_logical", put(_PLAN.physical_to_logical, -1, (0, 0))),
    ("physical_to_logical", put(_PLAN.physical_to_logical, _PLAN.physical_to_logical[1, 1], (1, 0))),
    ("loads", put(_PLAN.loads, -1, (0, 0))),
    ("tp_size", 3),
    ("tp_size", 0),
    ("tp_size", -2),
    ("lengths", put(_PLAN.lengths, 2**62, (-1,))),
    ("density", -0.1),
    ("density", 0.0),
    ("objective", "best"),
    ("scope", "head"),
    ("rule", SparsityRule(query_block=128)),
    ("rule", SparsityRule(query_block=192, floor_pages=10**30)),
    ("rule", SparsityRule(query_block=192, sink_pages=10**6)),
    ("rule", SparsityRule(query_block=192, dense_below_tokens=2**40)),
]


@pytest.mark.parametrize(("name", "value"), _BAD_PLANS)
def test_plan_values_out_of_range(tmp_path: Path, name: str, value: object) -> None:
    msgspec.structs.replace(_PLAN, **{name: value}).save(tmp_path / "p")
    assert f"'{name}' holds values out of range" in refused(tmp_path / "p", ServingPlan.load)


@pytest.mark.parametrize("name", ["lengths", "budgets", "physical_to_logical", "loads"])
def test_plan_arrays_of_another_form(tmp_path: Path, name: str) -> None:
    array = getattr(_PLAN, name)
    for other in (array.astype(np.float32), array[:-1].copy(), array[None]):
        if name == "lengths" and other.shape == array[:-1].shape and other.dtype == array.dtype:
            continue  # fewer lengths are a form of its own; then the budgets do not fit
        msgspec.structs.replace(_PLAN, **{name: other}).save(tmp_path / "p")
        assert f"'{name}'" in refused(tmp_path / "p", ServingPlan.load)


@pytest.mark.parametrize("name", ["lengths", "densities", "rows", "error", "recovery"])
def test_profile_arrays_of_another_form(tmp_path: Path, name: str) -> None:
    array = getattr(_PROFILE, name)
    for other in (array.astype(np.float16), array[None]):
        msgspec.structs.replace(_PROFILE, **{name: other}).save(tmp_path / "p")
        assert f"'{name}'" in refused(tmp_path / "p", HeadProfile.load)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", None), ("model", {"architecture": "x"}), ("tp_size", "2"), ("rule", {"query_block": 0}),
     ("rule", {"query_block": 128, "score": "a later one"}), ("versions", [1]), ("fingerprint", "abc"),
     ("model", msgspec.to_builtins(_PLAN.model) | {"num_kv_heads": 0})],
)  # fmt: skip
def test_plan_metadata_of_another_form(tmp_path: Path, name: str, value: object) -> None:
    msgspec.structs.replace(_PLAN, **{name: value}).save(tmp_path / "p")
    assert "metadata is not valid" in refused(tmp_path / "p", ServingPlan.load)


def test_ranks_hold_whole_groups() -> None:
    shape = make_shape(layers=2, kv_heads=4, group=3)
    order = np.array([[2, 0, 3, 1], [1, 3, 0, 2]], dtype=np.int32)
    plan = make_serving_plan(shape, tp_size=2, physical_to_logical=order)
    assert plan.permutes
    assert plan.local_kv_heads(1).tolist() == [[3, 1], [0, 2]]
    assert plan.local_qo_heads(0).tolist() == [[6, 7, 8, 0, 1, 2], [3, 4, 5, 9, 10, 11]]
    assert expand_groups(np.array([2, 0]), 2).tolist() == [4, 5, 0, 1]
    loads = np.array([[1, 10, 100, 1000]] * 2)
    assert plan.rank_loads(loads).tolist() == [[101, 1010], [1010, 101]]
    assert plan.rank_loads(loads, contiguous=True).tolist() == [[11, 1100]] * 2
    same = np.arange(4, dtype=np.int32)[None].repeat(2, axis=0)
    assert not make_serving_plan(shape, physical_to_logical=same).permutes


def test_mean_curves_are_weighted_by_rows() -> None:
    profile = make_profile(documents=3)
    for name in ("error", "recovery"):
        for n in range(len(LENGTHS)):
            weights = profile.rows[:, n] / profile.rows[:, n].sum()
            expected = sum(w * c[:, :, n].astype(float) for w, c in zip(weights, getattr(profile, name), strict=True))
            np.testing.assert_allclose(profile.mean_curves(name)[:, :, n], expected, rtol=1e-12)


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("objective", ["min_error", "max_min", "max_mean", "uniform"])
def test_mean_density_is_as_asked(objective: Any, scope: Any) -> None:
    plan = make_plan(make_profile(), tp_size=2, density=0.3, objective=objective, scope=scope)
    axes = (0, 1) if scope == "model" else 1
    np.testing.assert_allclose(plan.budgets[:, :, 1:].mean(axis=axes), 0.3, atol=1e-5)
    if objective != "uniform":
        assert np.ptp(plan.budgets[:, :, -1]) > 0.1


def test_short_contexts_never_go_below_the_floor() -> None:
    profile = make_profile()
    budgets = allocate_apart(profile, profile.rule, 0.01, 1, objective="min_error", scope="model").budgets
    for index, length in enumerate(LENGTHS):
        floor = profile.rule.floor_pages / math.ceil(3 * length / 4 / 64)
        assert budgets[:, :, index].min() >= floor - 1e-12
        np.testing.assert_allclose(budgets[:, :, index].mean(), max(0.01, floor), atol=1e-5)


def test_min_error_loses_least() -> None:
    profile = make_profile()
    error = profile.mean_curves("error")[:, :, -1]

    def loss(objective: Any) -> float:
        budgets = allocate_apart(profile, profile.rule, 0.2, 1, objective=objective, scope="model").budgets[:, :, -1]
        pairs = zip(budgets.ravel(), error.reshape(-1, error.shape[-1]), strict=True)
        return float(sum(np.interp(share, profile.densities, curve) for share, curve in pairs))

    assert loss("min_error") < 0.9 * min(loss("uniform"), loss("max_min"))


def test_inert_heads_cost_and_weigh_nothing() -> None:
    profile = make_profile(make_shape(kv_heads=4, group=2, inert=(1, 3)))
    assert profile.inert.sum(axis=1).tolist() == [4, 4, 4]
    plan = make_plan(profile, tp_size=2, density=0.3)
    real, inert = [0, 1, 4, 5], [2, 3, 6, 7]
    np.testing.assert_allclose(plan.budgets[:, real, -1].mean(), 0.3, atol=1e-5)
    assert plan.budgets[:, inert].max() <= 1e-6  # the pages that are always kept, at any length
    assert plan.budget_table(1 << 17).pages[:, inert, -1].max() == profile.rule.floor_pages
    assert not plan.loads[:, [1, 3]].any()
    assert plan.loads[:, [0, 2]].all()


def test_placement_is_better_than_contiguous() -> None:
    plan = make_plan(make_profile(make_shape(layers=8, kv_heads=8, group=2)), tp_size=2, density=0.2)
    placed, contiguous = plan.rank_loads(plan.loads), plan.rank_loads(plan.loads, contiguous=True)
    assert (placed.max(axis=1) <= contiguous.max(axis=1)).all()
    assert placed.max(axis=1).sum() < 0.95 * contiguous.max(axis=1).sum()
    assert (placed.sum(axis=1) == contiguous.sum(axis=1)).all()
    for row in plan.physical_to_logical:
        assert sorted(row.tolist()) == list(range(8))


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        make_plan(make_profile(), tp_size=2, density=0.25).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("tp_size", [3, 8, 0, -1])
def test_ranks_that_do_not_divide_the_groups(tp_size: int) -> None:
    with pytest.raises(PlanningError, match="KV heads can't be placed") as caught:
        make_plan(make_profile(), tp_size=tp_size, density=0.25)
    assert is_one_sentence(str(caught.value).replace(": choose", "; choose"))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_density_out_of_range(density: float) -> None:
    with pytest.raises(PlanningError, match="density is"):
        make_plan(make_profile(), tp_size=1, density=density)


def test_count_bound() -> None:
    assert count_bound(4, 1, 2) == pytest.approx(4 / 3)  # 3 real groups on 2 ranks
    assert count_bound(8, 0, 4) == 1.0
    assert count_bound(4, 1, 4) == pytest.approx(4 / 3)
    assert count_bound(3, 0, 3) == 1.0
