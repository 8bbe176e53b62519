# SPDX-License-Identifier: Apache-2.0
"""What is compared: stock dense, and S-HPLB at some density under an objective or another policy of choosing pages."""

from pathlib import Path

import msgspec

from shplb.errors import UserError
from shplb.plan import ServingPlan
from shplb.policies import BUDGETS, DEFAULT, POLICIES, Budgets, parse_policy
from shplb.profile import HeadProfile
from shplb.quality.candidates import computed_density

DENSE = "dense"
_BISECTIONS = 30
_RANKS = ":tp"


class VariantError(UserError):
    """A variant that can't be served; the message is one sentence."""


class Variant(msgspec.Struct, frozen=True):
    """One server of the comparison.

    budgets: a name of BUDGETS. policy: a name for the server's --shplb-policy, "" for its default. density: computed
    share of the causal blocks, 1.0 of the stock server. tp_size: ranks.
    """

    name: str
    density: float = 1.0
    budgets: str = POLICIES[DEFAULT].budgets
    policy: str = ""
    tp_size: int = 1

    @property
    def twin(self) -> str:
        """Name of the same variant on one rank; "" where this is it."""
        return split_ranks(self.name)[0] if self.tp_size > 1 else ""

    @property
    def is_stock(self) -> bool:
        return self.name == DENSE


def split_ranks(name: str) -> tuple[str, str | None]:
    """("min_error@0.1", "3") of "min_error@0.1:tp3"; ("min_error@0.1", None) where no ranks are named."""
    twin, colon, ranks = name.partition(_RANKS)
    return twin, ranks if colon else None


def parse_variant(text: str) -> Variant:
    """ "dense", "BUDGETS@0.1", "POLICY@0.1" with the policy's own budgets, or "BUDGETS+POLICY@0.1"; on three ranks
    with ":tp3" after it.

    Raises VariantError in one sentence for anything else.
    """
    if text == DENSE:
        return Variant(DENSE)
    name, ranks = split_ranks(text)
    what, _, density = name.rpartition("@")
    try:
        value, tp_size = float(density), 1 if ranks is None else int(ranks)
    except ValueError:
        value = tp_size = 0
    least_ranks = 1 if ranks is None else 2
    if not what or not 0.0 < value <= 1.0 or tp_size < least_ranks:
        raise VariantError(
            f"--variants holds {text}, expected dense, NAME@DENSITY such as min_error@0.1, or that with :tp2 after it."
        )
    budgets, _, policy = what.partition("+")
    if budgets not in BUDGETS:
        budgets, policy = "", what
    try:
        own = parse_policy(policy).budgets if policy else ""
    except ValueError as error:
        raise VariantError(f"--variants holds {text}, but its {error}, or budgets of {', '.join(BUDGETS)}.") from None
    return Variant(text, value, budgets or own, policy, tp_size)


def plan_at(profile: HeadProfile, budgets: Budgets, computed: float, tokens: int, tp_size: int = 1) -> ServingPlan:
    """The plan whose *computed* density on a prompt of ``tokens`` tokens is ``computed``, by bisection."""
    maker = budgets.maker(profile, tp_size)
    if computed >= 1.0 or budgets.dense:
        return maker.plan(1.0)
    low, high = 1e-3, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        plan = maker.plan(middle)
        low, high = (middle, high) if computed_density(plan, tokens) < computed else (low, middle)
    return plan


def save_plans(variants: list[Variant], profile: HeadProfile, tokens: int, folder: Path) -> dict[str, ServingPlan]:
    """Plans of all variants but stock, by name, each in a file of :func:`plan_path`; densities hold at ``tokens``."""
    plans = {
        v.name: plan_at(profile, BUDGETS[v.budgets], v.density, tokens, v.tp_size) for v in variants if not v.is_stock
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, plan in plans.items():
        plan.save(plan_path(folder, name))
    return plans


def plan_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.plan.safetensors"
