# SPDX-License-Identifier: Apache-2.0
"""Switches for tests, benches and operators.

Environment variables, since ranks inherit them and the patch of SGLang needs no further field.
"""

import os
from typing import Literal, NamedTuple, get_args

import msgspec

from shplb.plan import ServingPlan
from shplb.planner import CostModel
from shplb.policies import BUDGETS, DEFAULT, POLICIES, parse_policy
from shplb.sglang.refusal import StartRefusedError

PATH = "SHPLB_PATH"
KERNEL = "SHPLB_KERNEL"
SAMPLE_EVERY = "SHPLB_SAMPLE_EVERY"
CALIBRATION_S = "SHPLB_CALIBRATION_S"
POLICY = "SHPLB_POLICY"
SHADOW_EVERY = "SHPLB_SHADOW_EVERY"
FEEDBACK = "SHPLB_FEEDBACK"

PathName = Literal["auto", "sparse"]
KernelName = Literal["auto", "sm90", "public"]
FeedbackName = Literal["off", "on"]

# Under these costs the planner finds every prefill faster sparse; it still leaves one new token to the base backend.
# Items and tiles keep the proportion of real costs, so that CTAs get the same work; predicted times mean nothing.
SPARSE_AT_ANY_PRICE = CostModel(
    item_ns=200, kv_tile_ns=100, dense_kv_tile_ns=100_000, select_pair_ps=0, select_block_ps=0, pool_page_ps=0,
    layer_ns=0,
)  # fmt: skip


class Environment(NamedTuple):
    """What is set.

    Attributes:
        path: ``auto``: as predicted to be fastest; ``sparse``: ours wherever more than one token is new.
        kernel: of FlashInfer, ``auto`` by GPU.
        sample_every: sparse steps from one whose attention is timed to the next, 0 for never.
        calibration_s: seconds that making a plan at start may take.
        policy: what pages are scored by and how they are chosen, see ``shplb.policies``; "" for what the plan says.
        shadow_every: sparse steps from one that is checked against dense attention to the next, 0 for never.
        feedback: ``on``: sampled times move work of replicas from slower ranks to faster ones.
    """

    path: PathName = "auto"
    kernel: KernelName = "auto"
    sample_every: int = 0
    calibration_s: int = 1800
    policy: str = ""
    shadow_every: int = 0
    feedback: FeedbackName = "off"

    @classmethod
    def read(cls) -> "Environment":
        """StartRefusedError in one sentence for a value that is not valid."""
        environment = cls(
            _choice(PATH, get_args(PathName)),
            _choice(KERNEL, get_args(KernelName)),
            _number(SAMPLE_EVERY, cls._field_defaults["sample_every"], "steps, or 0 for no sampling"),
            _number(CALIBRATION_S, cls._field_defaults["calibration_s"], "seconds"),
            _policy(),
            _number(SHADOW_EVERY, cls._field_defaults["shadow_every"], "steps, or 0 for no checks"),
            _choice(FEEDBACK, get_args(FeedbackName)),
        )
        if environment.feedback == "on" and not environment.sample_every:
            raise StartRefusedError(f"{FEEDBACK} is on, but nothing is timed; set {SAMPLE_EVERY}=64, too.")
        return environment

    @property
    def promises(self) -> tuple[str, ...]:
        """What ``Drift`` is to judge: costs at any price predict nothing, and the profile is of the default policy."""
        time = ("time",) if self.path != "sparse" else ()
        ours = parse_policy(self.policy or DEFAULT)._replace(tail=None) == POLICIES[DEFAULT]
        return (*time, "mass") if ours else time

    def apply(self, plan: ServingPlan) -> ServingPlan:
        """``plan`` with the score and choice of the policy, if one is set.

        StartRefusedError where the policy means other budgets than the plan has, and nothing else.
        """
        if self.policy in ("", DEFAULT):
            return plan
        policy = parse_policy(self.policy)
        if policy.is_of_budgets_only and not BUDGETS[policy.budgets].are_of(plan):
            raise StartRefusedError(
                f"policy {self.policy} differs from the default in its budgets, which are the plan's "
                f"({plan.objective}, per {plan.scope}); make a plan with those of docs/policies.md."
            )
        if plan.replicas and not policy.is_of_budgets_only:
            raise StartRefusedError(
                f"policy {self.policy} is not supported with replicas, which this plan has; plan without --replicas."
            )
        return msgspec.structs.replace(plan, rule=policy.rule(plan.rule))


def _policy() -> str:
    text = os.environ.get(POLICY, "")
    try:
        if text:
            parse_policy(text)
    except ValueError as error:
        raise StartRefusedError(f"{POLICY} is {text}: {error}.") from None
    return text


def _number(variable: str, default: int, unit: str) -> int:
    value = os.environ.get(variable) or str(default)
    if not (value.isascii() and value.isdecimal()):
        raise StartRefusedError(f"{variable} is {value}, expected a number of {unit}.")
    return int(value)


def _choice[Name: str](variable: str, choices: tuple[Name, ...]) -> Name:
    """The first choice where nothing is set."""
    value = os.environ.get(variable) or choices[0]
    for choice in choices:
        if value == choice:
            return choice
    raise StartRefusedError(f"{variable} is {value}, expected {' or '.join(choices)}; unset it.")
