# SPDX-License-Identifier: Apache-2.0
"""Needed density against numpy's interpolation and by hand; correlations against scipy."""

import msgspec
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic import is_one_sentence, make_profile, make_shape

from shplb.needed_density import Quantity, needed_density
from shplb.profile import HeadProfile
from shplb.rank_correlation import average_ranks, pearson, spearman


def three_points(error: list[list[float]], inert: tuple[int, ...] = ()) -> tuple[HeadProfile, np.ndarray]:
    """A profile of densities 0.25, 0.5 and 1, and one curve per head of its only layer: [1, heads, 1, 3]."""
    shape = make_shape(layers=1, kv_heads=len(error), group=1, inert=inert)
    profile = msgspec.structs.replace(make_profile(shape), densities=np.array([0.25, 0.5, 1.0]))
    return profile, np.array(error)[None, :, None, :]


@pytest.mark.parametrize("target", [0.3, 0.9, 0.99, 1.0])
def test_recovery_is_interpolated_linearly_from_zero(target: float) -> None:
    profile = make_profile()
    needed = needed_density(profile, profile.recovery, "recovery", target)
    assert needed.shape == profile.recovery.shape[:-1]
    densities = np.concatenate([[0.0], profile.densities])
    for curve, found in zip(profile.recovery.reshape(-1, len(profile.densities)), needed.ravel(), strict=True):
        rising = np.concatenate([[0.0], curve.astype(np.float64)])
        last = int(np.argmax(rising)) + 1  # float32 curves end in equal values, where the inverse has a jump
        assert found == pytest.approx(np.interp(target, rising[:last], densities[:last]), abs=2e-6)


def test_error_falls_to_a_share_of_the_mean_heads() -> None:
    profile = make_profile(documents=3)
    needed = needed_density(profile, profile.error, "error", 0.1)
    for document in range(3):
        for n in range(len(profile.lengths)):
            curves = profile.error[document, :, :, n].astype(np.float64).reshape(-1, len(profile.densities))
            level = 0.1 * curves[:, 0].mean()
            expected = [np.interp(level, curve[::-1], profile.densities[::-1]) for curve in curves]
            np.testing.assert_allclose(needed[document, :, :, n].ravel(), expected, atol=2e-6)
    assert np.ptp(needed) > 0.3


def test_error_by_hand() -> None:
    profile, curves = three_points([[9.0, 3.0, 0.0], [1.0, 0.5, 0.0], [2.0, 2.0, 0.0]])
    # The mean head has 4 at density 0.25, so the level is 2.
    needed = needed_density(profile, curves, "error", 0.5)
    assert needed.ravel().tolist() == [pytest.approx(2 / 3, abs=1e-6), 0.25, 0.25]


def test_inert_heads_need_nothing_and_do_not_weigh() -> None:
    profile, curves = three_points([[8.0, 4.0, 0.0], [0.0, 0.0, 0.0], [8.0, 0.0, 0.0]], inert=(1,))
    assert needed_density(profile, curves, "error", 0.5).ravel().tolist() == [0.5, 0.0, 0.375]
    assert needed_density(profile, curves / 8, "recovery", 0.5).ravel().tolist() == [0.125, 0.0, 0.125]


def test_curves_that_are_not_strictly_monotone() -> None:
    flat = [[0.4, 0.4, 1.0], [0.5, 0.5, 0.5], [0.9, 0.3, 0.9], [0.3, 0.1, 0.6], [0.0, 0.0, 0.0]]
    profile, curves = three_points(flat)
    needed = needed_density(profile, curves, "recovery", 0.5).ravel()
    # On a plateau; reached at the first point and never left; worse later counts as equal; 0.3 stays until 0.5.
    np.testing.assert_allclose(needed, [0.5 + 0.5 / 6, 0.25, 0.25 * 5 / 9, 0.5 + 0.5 * 2 / 3, 1.0], atol=1e-6)
    assert needed_density(profile, curves * 0, "error", 0.1).ravel().tolist() == [0.25] * 5


@pytest.mark.parametrize(
    ("quantity", "target"),
    [("recovery", 0.0), ("recovery", 1.01), ("recovery", np.nan), ("error", 1.0), ("error", -0.1), ("error", np.inf)],
)
def test_targets_out_of_range(quantity: Quantity, target: float) -> None:
    profile = make_profile()
    with pytest.raises(ValueError, match=f"the target for {quantity} is {target}") as caught:
        needed_density(profile, profile.error, quantity, target)
    assert is_one_sentence(caught.value)


_NUMBERS = st.one_of(st.integers(0, 3).map(float), st.floats(1e-6, 1.0, allow_subnormal=False))


@settings(deadline=None, max_examples=60)
@given(arrays(np.float64, st.tuples(st.integers(2, 4), st.integers(2, 30)), elements=_NUMBERS))
def test_correlations_agree_with_scipy(values: np.ndarray) -> None:
    values = np.round(values, 6)
    ranks, linear = spearman(values), pearson(values)
    np.testing.assert_array_equal(average_ranks(values), scipy.stats.rankdata(values, axis=1))
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if np.ptp(a) == 0 or np.ptp(b) == 0:
                assert np.isnan(ranks[i, j])
                assert np.isnan(linear[i, j])
            else:
                assert ranks[i, j] == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-9)
                assert linear[i, j] == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-9)
