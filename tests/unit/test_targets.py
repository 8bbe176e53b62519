# SPDX-License-Identifier: Apache-2.0
"""Densities found from a recovery or a latency: they meet the target, and the next step would not."""

import re

import msgspec
import numpy as np
import pytest
from synthetic import LENGTHS, is_one_sentence, make_profile, make_shape

from shplb.planning import PlanMaker, PlanningError
from shplb.prediction import placed_ms
from shplb.recovered_mass import RecoveredMass
from shplb.steps import STEPS
from shplb.targets import density_for_latency, density_for_recovery

PROFILE = make_profile(make_shape(layers=4, kv_heads=4, group=4, inert=(2,)))


def mean_recovery(maker: PlanMaker, density: float) -> np.ndarray:
    """[num_lengths], one head after the other."""
    budgets, curves = maker.allocate(density).budgets, maker.profile.mean_curves("recovery")
    x = np.concatenate([[0.0], maker.profile.densities])
    found = np.zeros((4, 16, len(LENGTHS)))
    for at in np.ndindex(found.shape):
        found[at] = np.interp(budgets[at], x, np.concatenate([[0.0], curves[at]]))
    real = [head for head in range(16) if head // 4 != 2]
    return np.asarray(found[:, real].mean(axis=(0, 1)))


@pytest.mark.parametrize("objective", ["min_error", "max_min", "uniform"])
@pytest.mark.parametrize("recovery", [0.5, 0.8, 0.95, 0.999])
def test_recovery_is_reached_and_just_so(objective: str, recovery: float) -> None:
    maker = PlanMaker(PROFILE, tp_size=2, objective=objective)  # type: ignore[arg-type]
    density = density_for_recovery(maker, recovery)
    assert density * STEPS == pytest.approx(round(density * STEPS))
    assert mean_recovery(maker, density)[1:].min() >= recovery - 1e-6  # the first length is served dense
    assert mean_recovery(maker, density - 1 / STEPS)[1:].min() < recovery


def test_recovered_mass_agrees_with_numpy() -> None:
    maker = PlanMaker(PROFILE, tp_size=1)
    np.testing.assert_allclose(
        RecoveredMass(maker.profile, maker.rule).means(maker.allocate(0.2).budgets),
        mean_recovery(maker, 0.2),
        atol=1e-6,
    )


def test_all_of_the_mass_can_be_asked_for() -> None:
    recovery = np.minimum(PROFILE.recovery, 0.9995)  # a measurement that rounds at density 1, too
    maker = PlanMaker(msgspec.structs.replace(PROFILE, recovery=recovery), tp_size=1)
    assert density_for_recovery(maker, 1.0) == 1.0


def test_lengths_that_are_served_dense_do_not_count() -> None:
    recovery = PROFILE.recovery.copy()
    recovery[:, :, :, 0, :-1] = 0.0  # the shortest contexts would need every page
    profile = msgspec.structs.replace(PROFILE, recovery=recovery)

    def density(dense_below_tokens: int) -> float:
        maker = PlanMaker(profile, tp_size=1, objective="uniform", dense_below_tokens=dense_below_tokens)
        return density_for_recovery(maker, 0.9)

    assert density(LENGTHS[0] - 1) > 0.9
    assert density(LENGTHS[0]) < 0.5
    assert 0.0 < density(2 * LENGTHS[-1]) < 0.5  # the longest always counts


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_latency_is_met_and_just_so(tp_size: int) -> None:
    maker = PlanMaker(PROFILE, tp_size=tp_size)
    tokens = 65536
    least, most = placed_ms(maker.plan(1 / STEPS), tokens), placed_ms(maker.plan(1.0), tokens)
    assert least < 0.6 * most
    budget = (least + most) / 2
    density = density_for_latency(maker, budget, tokens)
    assert 1 / STEPS < density < 1.0
    assert placed_ms(maker.plan(density), tokens) <= budget < placed_ms(maker.plan(density + 1 / STEPS), tokens)
    assert density_for_latency(maker, most, tokens) == 1.0


def test_latency_out_of_reach_says_what_is_within() -> None:
    maker = PlanMaker(PROFILE, tp_size=2)
    with pytest.raises(PlanningError) as caught:
        density_for_latency(maker, 0.25, 65536)
    assert is_one_sentence(caught.value)
    least = re.search(r"at least ([0-9.]+) ms", str(caught.value))
    assert least is not None
    assert 1 / STEPS <= density_for_latency(maker, float(least[1]), 65536) < 0.1
    with pytest.raises(PlanningError):
        density_for_latency(maker, float(least[1]) - 0.002, 65536)


def test_the_longest_profiled_length_is_the_default() -> None:
    maker = PlanMaker(PROFILE, tp_size=2)
    budget = placed_ms(maker.plan(0.1), LENGTHS[-1])
    assert density_for_latency(maker, budget) == density_for_latency(maker, budget, LENGTHS[-1]) >= 0.1
