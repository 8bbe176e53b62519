# SPDX-License-Identifier: Apache-2.0
"""What is compared: stock dense, and S-HPLB at some density under an objective or another policy of choosing pages."""

from pathlib import Path
from typing import get_args

import msgspec

from shplb.budget import Objective, Scope
from shplb.errors import UserError
from shplb.plan import ServingPlan
from shplb.planning import PlanMaker
from shplb.profile import HeadProfile
from shplb.quality.candidates import computed_density

DENSE = "dense"
_DEFAULT_OBJECTIVE: Objective = "min_error"
_BISECTIONS = 30


class VariantError(UserError):
    """A variant that can't be served; the message is one sentence."""


class Variant(msgspec.Struct, frozen=True):
    """One server of the comparison.

    policy: a name for the server's --shplb-policy, "" for its default. density: computed share of the causal blocks,
    1.0 of the stock server. Budgets are the objective's, over the whole model or per layer.
    """

    name: str
    density: float = 1.0
    objective: Objective = _DEFAULT_OBJECTIVE
    scope: Scope = "model"
    policy: str = ""

    @property
    def is_stock(self) -> bool:
        return self.name == DENSE


def parse_variant(text: str) -> Variant:
    """ "dense", "OBJECTIVE@0.1", "OBJECTIVE-layer@0.1", "OBJECTIVE+POLICY@0.1", or "POLICY@0.1" for any other name.

    Raises VariantError in one sentence for anything else.
    """
    if text == DENSE:
        return Variant(DENSE)
    what, _, density = text.rpartition("@")
    try:
        value = float(density)
    except ValueError:
        value = 0.0
    if not what or not 0.0 < value <= 1.0:
        raise VariantError(f"--variants holds {text}, expected dense or NAME@DENSITY such as min_error@0.1.")
    budgets, _, policy = what.partition("+")
    for known in get_args(Objective):
        if budgets.removesuffix("-layer") == known:
            return Variant(text, value, known, "layer" if budgets.endswith("-layer") else "model", policy)
    return Variant(text, value, policy=what)


def plan_at(
    profile: HeadProfile, objective: Objective, computed: float, tokens: int, scope: Scope = "model"
) -> ServingPlan:
    """The plan whose *computed* density on a prompt of ``tokens`` tokens is ``computed``, by bisection."""
    maker = PlanMaker(profile, tp_size=1, objective=objective, scope=scope)
    if computed >= 1.0:
        return maker.plan(1.0)
    low, high = 1e-3, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        plan = maker.plan(middle)
        low, high = (middle, high) if computed_density(plan, tokens) < computed else (low, middle)
    return plan


def save_plans(variants: list[Variant], profile: HeadProfile, tokens: int, folder: Path) -> dict[str, ServingPlan]:
    """Plans of all variants but stock, by name, each in a file of :func:`plan_path`; densities hold at ``tokens``."""
    plans = {v.name: plan_at(profile, v.objective, v.density, tokens, v.scope) for v in variants if not v.is_stock}
    folder.mkdir(parents=True, exist_ok=True)
    for name, plan in plans.items():
        plan.save(plan_path(folder, name))
    return plans


def plan_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.plan.safetensors"
