# SPDX-License-Identifier: Apache-2.0
"""The stability report: heads whose order is known, kept or shuffled; and profiles too small to say anything."""

import io
import json
from itertools import combinations

import msgspec
import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from synthetic import LENGTHS, is_one_sentence, make_profile, make_shape

from shplb.agreement import Agreement, Correlation
from shplb.model import ModelShape
from shplb.needed_density import TARGETS, Quantity, needed_density
from shplb.profile import DENSITIES, HeadProfile
from shplb.show_stability import print_stability
from shplb.stability import Stability, stability

pytestmark = pytest.mark.filterwarnings("error")  # numpy warns of every NaN it makes

SHAPE = make_shape(layers=20, kv_heads=4, group=3)
QUANTITIES: tuple[Quantity, ...] = ("recovery", "error")


def profile_of(need: np.ndarray, shape: ModelShape = SHAPE, names: tuple[str, ...] | None = None) -> HeadProfile:
    """Heads whose needed density, for recovery and error, rises with ``need`` [documents, layers, heads, lengths]."""
    documents, bend = len(need), 2.3 / need[..., None]
    lost = (np.exp(-bend * np.array(DENSITIES)) - np.exp(-bend)) / (1 - np.exp(-bend))
    lengths = need.shape[3]
    return msgspec.structs.replace(
        make_profile(shape, documents=documents),
        documents=names or tuple(f"text {index}" for index in range(documents)),
        lengths=np.array(LENGTHS[:lengths], dtype=np.int64),
        rows=np.full((documents, lengths), 10),
        error=lost.astype(np.float32),
        recovery=(1 - lost).astype(np.float32),
    )


def random_need(documents: int, lengths: int = 3, seed: int = 0, shape: ModelShape = SHAPE) -> np.ndarray:
    """The same for all documents and lengths, [documents, layers, heads, lengths]."""
    rng = np.random.default_rng(seed)
    need = rng.uniform(0.05, 0.6, (1, shape.num_layers, shape.num_qo_heads, 1))
    return np.tile(need, (documents, 1, 1, lengths))


def agreement(report: Stability, axis: str, quantity: Quantity) -> Agreement:
    (part,) = [part for part in report.needed if part.quantity == quantity]
    (found,) = [item for item in part.agreements if item.axis == axis]
    return found


def overall(report: Stability, axis: str, quantity: Quantity) -> Correlation:
    found = agreement(report, axis, quantity)
    assert found.overall is not None
    assert found.reason is None
    return found.overall


def within(report: Stability, axis: str, quantity: Quantity) -> Correlation:
    found = agreement(report, axis, quantity).within_layers
    assert found is not None
    return found


def shown(report: Stability) -> str:
    output = io.StringIO()
    print_stability(report, Console(width=100, file=output))
    return output.getvalue()


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_heads_that_keep_their_order(quantity: Quantity) -> None:
    report = stability(profile_of(random_need(4)))
    for axis, pairs in (("documents", 18), ("adjacent lengths", 2), ("lengths", 3)):
        for found in (overall(report, axis, quantity), within(report, axis, quantity)):
            assert found.least_spearman == found.spearman == pytest.approx(1.0)
            assert found.least_pearson == pytest.approx(1.0)
        assert agreement(report, axis, quantity).pairs == pairs
    assert report.warning is None
    assert report.verdict.startswith("stable: heads keep their order across documents (Spearman 1.00")


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_heads_shuffled_in_every_document(quantity: Quantity) -> None:
    rng, need = np.random.default_rng(1), random_need(4)
    shuffled = [rng.permutation(each.reshape(-1, 3)).reshape(each.shape) for each in need]
    report = stability(profile_of(np.array(shuffled)))
    assert abs(overall(report, "documents", quantity).spearman) < 0.1
    assert abs(within(report, "documents", quantity).spearman) < 0.1
    assert overall(report, "lengths", quantity).spearman > 0.99
    assert report.verdict.startswith("not stable: heads change their order across documents (Spearman ")
    assert ", and keep it across lengths (Spearman 1.00" in report.verdict
    assert report.warning is not None
    assert "below 0.8 across documents (recovery " in report.warning
    assert "lengths (" not in report.warning
    assert "within layers" not in report.verdict
    assert report.warning.endswith("profile more or longer documents (--documents, --max-tokens).")


def test_needs_that_shrink_in_step_keep_their_ranks() -> None:
    need = random_need(3).clip(0.1)
    need[1] **= 2
    need[:, :, :, 2] /= 2
    report = stability(profile_of(need))
    for axis in ("documents", "lengths"):
        assert overall(report, axis, "recovery").least_spearman == pytest.approx(1.0, abs=1e-4)
        # Needs below the smallest density tie, since the error there is not known.
        assert overall(report, axis, "error").least_spearman > 0.95
    for quantity in QUANTITIES:
        assert overall(report, "documents", quantity).least_pearson < 0.99


def test_shuffled_lengths() -> None:
    rng, need = np.random.default_rng(1), random_need(2)
    need[:, :, :, 2] = rng.permutation(need[0, :, :, 2].ravel()).reshape(need.shape[1:3])
    report = stability(profile_of(need))
    assert overall(report, "documents", "recovery").spearman == pytest.approx(1.0)
    lengths = overall(report, "lengths", "recovery")
    assert lengths.spearman == pytest.approx((1 + 2 * lengths.least_spearman) / 3, abs=0.02)
    assert overall(report, "adjacent lengths", "recovery").spearman == pytest.approx(0.5, abs=0.06)
    assert report.warning is not None
    assert "across adjacent lengths (recovery 0." in report.warning
    assert "change their order across adjacent lengths (Spearman 0." in report.verdict
    assert "--lengths" in report.warning


def test_order_between_layers_only() -> None:
    rng = np.random.default_rng(2)
    layers = np.linspace(0.05, 0.5, 20)[None, :, None, None] + rng.uniform(0, 0.01, (5, 20, 12, 1))
    report = stability(profile_of(np.tile(layers, (1, 1, 1, 3))))
    assert overall(report, "documents", "recovery").spearman > 0.97
    inside = min(within(report, "documents", quantity).spearman for quantity in QUANTITIES)
    assert abs(inside) < 0.1
    assert f"; within layers less so across documents ({inside:.2f}); not measured" in report.verdict
    assert is_one_sentence(report.verdict)
    assert report.warning is None


def test_layers_of_equal_heads_are_left_out_and_counted() -> None:
    need = random_need(2, lengths=2)
    need[0, :5, :, :] = 0.3
    report = stability(profile_of(need))
    found = agreement(report, "documents", "recovery")
    assert (found.layers_left_out, found.layers) == (10, 30)
    assert within(report, "documents", "recovery").spearman == pytest.approx(1.0)
    assert overall(report, "documents", "recovery").spearman < 1.0
    assert "layers in pairs" in shown(report)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_against_scipy_pair_by_pair(quantity: Quantity) -> None:
    rng = np.random.default_rng(3)
    profile = profile_of(np.clip(random_need(4) + rng.normal(0, 0.05, (4, 20, 12, 3)), 0.02, 0.8))
    needed = needed_density(profile, getattr(profile, quantity), quantity, TARGETS[quantity])
    report = stability(profile)
    for name in ("spearman", "pearson"):
        measure = {"spearman": scipy.stats.spearmanr, "pearson": scipy.stats.pearsonr}[name]
        whole, layers = [], []
        for n in range(3):
            for i, j in combinations(range(4), 2):
                a, b = needed[i, :, :, n], needed[j, :, :, n]
                whole.append(measure(a.ravel(), b.ravel()).statistic)
                varying = [x for x in range(20) if np.ptp(a[x]) > 0 and np.ptp(b[x]) > 0]
                layers.append(np.mean([measure(a[x], b[x]).statistic for x in varying]))
        for found, expected in ((overall, whole), (within, layers)):
            result = found(report, "documents", quantity)
            assert getattr(result, name) == pytest.approx(np.mean(expected))
            assert getattr(result, f"least_{name}") == pytest.approx(np.min(expected))
        assert 0.5 < np.mean(whole) < 0.999
    pairs = [(i, j) for _ in range(3) for i, j in combinations(range(4), 2)]
    ranks = [
        scipy.stats.spearmanr(needed[i, :, :, k // 6].ravel(), needed[j, :, :, k // 6].ravel()).statistic
        for k, (i, j) in enumerate(pairs)
    ]
    worst = int(np.argmin(ranks))
    i, j = pairs[worst]
    assert overall(report, "documents", quantity).where == f"text {i} and text {j} at {LENGTHS[worst // 6]} tokens"


def test_domains_are_compared_by_their_mean_curves() -> None:
    names = ("austen_emma@17", "brotli_c@0", "newton_opticks@3", "go_net_http@8", "someone's.txt")
    rng = np.random.default_rng(4)
    profile = profile_of(np.clip(random_need(5) + rng.normal(0, 0.1, (5, 20, 12, 3)), 0.02, 0.8), names=names)
    profile = msgspec.structs.replace(profile, rows=rng.integers(1, 50, (5, 3)))
    means = []
    for members in ([0, 2], [1, 3]):
        weights = profile.rows[members] / profile.rows[members].sum(axis=0)
        curves = np.einsum("dn,dlhnp->lhnp", weights, profile.recovery[members].astype(np.float64))
        means.append(needed_density(profile, curves, "recovery", 0.9))
    expected = [scipy.stats.spearmanr(means[0][..., n].ravel(), means[1][..., n].ravel()).statistic for n in range(3)]
    report = stability(profile)
    found = overall(report, "domains", "recovery")
    assert found.spearman == pytest.approx(np.mean(expected))
    assert found.where.startswith("prose and code at ")
    lower = min(overall(report, "domains", quantity).spearman for quantity in QUANTITIES)
    assert f"domains (Spearman {lower:.2f}" in report.verdict
    one = msgspec.structs.replace(profile, documents=("austen_emma@17", "a", "b", "c", "newton_opticks@0"))
    assert agreement(stability(one), "domains", "recovery").reason == "one domain, prose"


def test_documents_that_were_not_measured_at_a_length() -> None:
    profile = profile_of(random_need(3))
    rows = np.array([[10, 0, 0], [10, 10, 0], [10, 10, 10]])
    missing = (rows == 0)[:, None, None, :, None]
    recovery, error = np.where(missing, 0, profile.recovery), np.where(missing, 0, profile.error)
    report = stability(msgspec.structs.replace(profile, rows=rows, recovery=recovery, error=error))
    for quantity in QUANTITIES:
        found = agreement(report, "documents", quantity)
        assert (found.pairs, found.pairs_left_out) == (3 + 1, 0)
        assert overall(report, "documents", quantity).least_spearman == pytest.approx(1.0)
    apart = msgspec.structs.replace(profile, rows=np.array([[10, 0, 0], [0, 10, 0], [0, 0, 10]]))
    expected = "no length was measured in two documents"
    assert agreement(stability(apart), "documents", "recovery").reason == expected


def test_inert_heads_are_left_out() -> None:
    need = random_need(3)
    need += np.random.default_rng(5).normal(0, 0.03, need.shape)
    padded = np.concatenate([need, np.full((3, 20, 3, 3), 0.3)], axis=2).clip(0.02)
    shape = make_shape(layers=20, kv_heads=5, group=3, inert=(4,))
    assert stability(profile_of(padded, shape)) == stability(profile_of(need.clip(0.02)))


_ALL_INERT = make_shape(layers=2, kv_heads=2, group=1, inert=(0, 1))
_ONE_HEAD = make_shape(layers=1, kv_heads=1, group=1)
_ONE_PER_LAYER = make_shape(layers=5, kv_heads=1, group=1)
_FLAT = np.full((2, 20, 12, 3), 0.3)
_SMALL: list[tuple[HeadProfile, str]] = [
    (profile_of(random_need(1)), "stable: heads keep their order across lengths (Spearman 1.00); not measured across "
     "documents (one document) and domains (the names of the documents carry no domain)."),
    (profile_of(random_need(2, lengths=1)), "not measured across domains (the names of the documents carry no domain) "
     "and lengths (one length)."),
    (profile_of(random_need(1, lengths=1)), "not measured: documents (one document), domains (the names of the "
     "documents carry no domain) and lengths (one length); profile more of them (--documents, --lengths)."),
    (profile_of(random_need(2, shape=_ONE_HEAD), _ONE_HEAD), "documents (one head only)"),
    (profile_of(random_need(2, shape=_ONE_PER_LAYER), _ONE_PER_LAYER), "stable"),
    (profile_of(random_need(2, shape=_ALL_INERT), _ALL_INERT), "documents (every head is padding)"),
    (profile_of(_FLAT), "lengths (all heads need the same density)"),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "verdict"), _SMALL)
def test_profiles_that_say_little(profile: HeadProfile, verdict: str) -> None:
    report = stability(profile)
    assert verdict in report.verdict
    assert is_one_sentence(report.verdict)
    assert report.warning is None
    json.dumps(report.to_builtins(), allow_nan=False)
    assert report.verdict in shown(report)
    for part in report.needed:
        for item in part.agreements:
            assert (item.overall is None) == (item.pairs == 0) == (item.reason is not None)


def test_curves_without_any_error() -> None:
    profile = make_profile()
    report = stability(msgspec.structs.replace(profile, error=profile.error * 0, recovery=profile.recovery * 0))
    assert report.verdict.startswith("not measured: documents (all heads need the same density)")


def test_json_form() -> None:
    report = stability(make_profile(documents=3))
    facts = json.loads(json.dumps(report.to_builtins(), allow_nan=False))
    assert msgspec.convert(facts, Stability) == report


def test_targets_are_the_callers() -> None:
    profile = profile_of(random_need(2))
    part, _ = stability(profile, recovery=0.5).needed
    assert part.target == 0.5
    longest = needed_density(profile, profile.mean_curves("recovery"), "recovery", 0.5)[:, :, -1]
    assert (part.least, part.median, part.most) == (longest.min(), np.median(longest), longest.max())
    with pytest.raises(ValueError, match=r"the target for error is 1\.0"):
        stability(profile, error=1.0)


def test_what_is_printed() -> None:
    rng = np.random.default_rng(6)
    need = rng.uniform(0.05, 0.6, (3, 20, 12, 3))
    report = stability(profile_of(need, names=("[red]a", "[/]b", "c")))
    text = shown(report)
    assert max(len(line) for line in text.splitlines() if "│" in line or "━" in line) <= 100
    assert "needed density for recovery 0.9 at 16384 tokens: least 0.1" in text
    assert report.verdict in text
    assert f"warning: {report.warning}" in text
    assert is_one_sentence(report.warning)
    assert is_one_sentence(report.verdict)
    assert "adjacent lengths" in text
    least = min((overall(report, axis, q) for axis in ("documents", "lengths") for q in QUANTITIES),
                key=lambda found: found.least_spearman)  # fmt: skip
    assert f"least alike: {least.where} (" in text
