# SPDX-License-Identifier: Apache-2.0
"""Do heads keep their order? Correlation of needed density across documents, domains and lengths.

Budgets come from calibration texts and serve all others: they are worth as much as this order is stable.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from shplb.agreement import Agreement, Axis, Measurements, compare
from shplb.needed_density import TARGETS, Quantity, needed_density
from shplb.profile import HeadProfile
from shplb.texts.domains import domain_of

#: A mean Spearman correlation below this is worth a warning.
LEAST_SPEARMAN = 0.8

#: How the two quantities are called in messages.
NAMES: dict[Quantity, str] = {"recovery": "recovery", "error": "output error"}

_ADVICE: dict[Axis, tuple[str, ...]] = {
    "documents": ("more or longer documents (--documents, --max-tokens)",),
    "domains": ("texts like those you serve (--texts)",),
    "adjacent lengths": ("more lengths (--lengths)", "more or longer documents (--documents, --max-tokens)"),
    "lengths": ("more lengths (--lengths)", "more or longer documents (--documents, --max-tokens)"),
}


class NeededDensity(msgspec.Struct, frozen=True):
    """Needed density for one quantity: its spread over heads at the longest length, and how stable it is.

    least, median, most: of the curves averaged over documents; None where every head is inert.
    """

    quantity: Quantity
    target: float
    length_tokens: int
    least: float | None
    median: float | None
    most: float | None
    agreements: tuple[Agreement, ...]


class Stability(msgspec.Struct, frozen=True):
    """The report. ``warning`` is None unless a mean Spearman correlation over all heads is below the limit."""

    needed: tuple[NeededDensity, ...]
    verdict: str
    warning: str | None

    def to_builtins(self) -> dict[str, Any]:
        """For JSON: dicts, lists, strings, finite numbers and None."""
        return dict(msgspec.to_builtins(self))


def stability(
    profile: HeadProfile, *, recovery: float = TARGETS["recovery"], error: float = TARGETS["error"]
) -> Stability:
    """Correlate needed densities for both quantities (see ``needed_density``), inert heads left out.

    Documents are compared with each other, and the mean curves of domains with each other, at every length they were
    measured at; lengths by the curves averaged over all documents, which is what plans use.

    Raises:
        ValueError: recovery not in (0, 1], or error not in (0, 1).
    """
    needed = (_needed(profile, "recovery", recovery), _needed(profile, "error", error))
    return Stability(needed=needed, verdict=_verdict(needed), warning=_warning(needed))


def _needed(profile: HeadProfile, quantity: Quantity, target: float) -> NeededDensity:
    curves = profile.mean_curves(quantity)
    mean = needed_density(profile, curves, quantity, target)[:, _real_heads(profile)]
    least, median, most = np.quantile(mean[:, :, -1], [0.0, 0.5, 1.0]).tolist() if mean.size else (None, None, None)
    lengths = [Measurements([f"{length} tokens" for length in profile.lengths], np.moveaxis(mean, 2, 0))]
    agreements = (
        _across_documents(profile, quantity, target),
        _across_domains(profile, quantity, target),
        compare("adjacent lengths", lengths, if_none="one length"),
        compare("lengths", lengths, if_none="one length"),
    )
    return NeededDensity(quantity, target, int(profile.lengths[-1]), least, median, most, agreements)


def _across_documents(profile: HeadProfile, quantity: Quantity, target: float) -> Agreement:
    needed = needed_density(profile, getattr(profile, quantity), quantity, target)
    reason = "one document" if len(profile.documents) == 1 else "no length was measured in two documents"
    return compare("documents", _per_length(profile, needed, profile.rows, profile.documents), if_none=reason)


def _across_domains(profile: HeadProfile, quantity: Quantity, target: float) -> Agreement:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(profile.documents):
        if domain := domain_of(name):
            groups.setdefault(domain, []).append(index)
    if not groups:
        return Agreement("domains", reason="the names of the documents carry no domain")
    parts = [
        msgspec.structs.replace(profile, rows=profile.rows[members], **{quantity: getattr(profile, quantity)[members]})
        for members in groups.values()
    ]
    needed = needed_density(profile, np.array([part.mean_curves(quantity) for part in parts]), quantity, target)
    rows = np.array([part.rows.sum(axis=0) for part in parts])
    reason = f"one domain, {next(iter(groups))}" if len(groups) == 1 else "no length was measured in two domains"
    return compare("domains", _per_length(profile, needed, rows, tuple(groups)), if_none=reason)


def _per_length(
    profile: HeadProfile, needed: np.ndarray, rows: np.ndarray, labels: Sequence[str]
) -> list[Measurements]:
    """needed: [measurements, layers, heads, lengths]; rows: [measurements, lengths], 0 where nothing was measured."""
    result = []
    for index, length in enumerate(profile.lengths):
        measured = np.flatnonzero(rows[:, index])
        values = needed[measured][:, :, _real_heads(profile), index]
        result.append(Measurements([labels[m] for m in measured], values, f" at {length} tokens"))
    return result


def _real_heads(profile: HeadProfile) -> np.ndarray:
    """Indices of heads that are not inert; padded groups are the same in every layer."""
    return np.flatnonzero(~profile.inert[0])


def _verdict(needed: tuple[NeededDensity, ...]) -> str:
    """One sentence; of the two quantities, the numbers of the one that is less stable."""
    keep: list[str] = []
    change: list[str] = []
    missing: list[str] = []
    looser: list[str] = []
    for axis, parts in _by_axis(needed).items():
        known = [item.overall for item in parts.values() if item.overall]
        mean = min((each.spearman for each in known), default=1.0)
        if axis == "adjacent lengths" and mean >= LEAST_SPEARMAN:
            continue  # all pairs of lengths say it already
        if not known:
            missing.append(f"{axis} ({parts['recovery'].reason})")
            continue
        least = min(each.least_spearman for each in known)
        text = f"{axis} (Spearman {mean:.2f}" + (f", least {least:.2f})" if f"{least:.2f}" != f"{mean:.2f}" else ")")
        (change if mean < LEAST_SPEARMAN else keep).append(text)
        inside = min((item.within_layers.spearman for item in parts.values() if item.within_layers), default=mean)
        if inside < LEAST_SPEARMAN <= mean:
            looser.append(f"{axis} ({inside:.2f})")
    if not keep and not change:
        few = any("(one document)" in text or "(one length)" in text for text in missing)
        return f"not measured: {_listed(missing)}{'; profile more of them (--documents, --lengths)' if few else ''}."
    sentence = f"not stable: heads change their order across {_listed(change)}" if change else ""
    if keep:
        sentence += f"{', and keep it' if change else 'stable: heads keep their order'} across {_listed(keep)}"
    sentence += f"; within layers less so across {_listed(looser)}" if looser else ""
    return sentence + (f"; not measured across {_listed(missing)}." if missing else ".")


def _warning(needed: tuple[NeededDensity, ...]) -> str | None:
    """One sentence that names what is below the limit and what to do; None if nothing is."""
    named: list[str] = []
    advice: dict[str, None] = {}  # in order, each once
    for axis, parts in _by_axis(needed).items():
        low = {name: item.overall.spearman for name, item in parts.items() if item.overall}
        low = {name: mean for name, mean in low.items() if mean < LEAST_SPEARMAN}
        if low:
            named.append(f"{axis} ({', '.join(f'{NAMES[name]} {mean:.2f}' for name, mean in low.items())})")
            advice |= dict.fromkeys(_ADVICE[axis])
    if not named:
        return None
    return (
        f"mean Spearman correlation of needed density is below {LEAST_SPEARMAN} across {_listed(named)}, so budgets "
        f"may not fit other texts or lengths: profile {_listed(list(advice), 'or')}."
    )


def _by_axis(needed: tuple[NeededDensity, ...]) -> dict[Axis, dict[Quantity, Agreement]]:
    axes: dict[Axis, dict[Quantity, Agreement]] = {}
    for part in needed:
        for item in part.agreements:
            axes.setdefault(item.axis, {})[part.quantity] = item
    return axes


def _listed(items: list[str], word: str = "and") -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"
