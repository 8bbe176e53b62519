# SPDX-License-Identifier: Apache-2.0
"""Every policy by name: how budgets are divided, what pages are scored by, and how scores become page lists.

A policy is one of each. Budgets are in the plan (``Budgets.maker`` makes it); score and choice are read by the server
(``--shplb-policy NAME``, or ``SHPLB_POLICY``), and by ``SparsityRule`` wherever pages are chosen. All run in the same
engine and the same attention kernel. Only the first is meant for serving; the others are experimental, there to be
compared with. docs/policies.md tells them apart; a test holds the two together.
"""

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from shplb.shares import parse_share
from shplb.sparsity import LEAST_BUDGET, MOST_TOKENS, ChoiceName, ScoreName, SparsityRule

if TYPE_CHECKING:
    from shplb.budget import Objective, Scope
    from shplb.plan import ServingPlan
    from shplb.planning import PlanMaker
    from shplb.profile import HeadProfile
    from shplb.weighing import Weighing


class Budgets(NamedTuple):
    """How a total is divided over the heads: options of ``shplb plan``, and where they are from."""

    objective: "Objective"
    scope: "Scope"
    weighing: "Weighing"
    balance_aware: bool
    source: str
    dense: bool = False

    def plan(self, profile: "HeadProfile", tp_size: int, density: float) -> "ServingPlan":
        """The plan with these budgets at mean density ``density``; errors as of :meth:`maker`, and PlanningError."""
        return self.maker(profile, tp_size).plan(1.0 if self.dense else density)

    def are_of(self, plan: "ServingPlan") -> bool:
        """Whether a plan's budgets can be these; how errors were weighed is not in a plan."""
        if self.dense:
            return bool((plan.budgets[plan.budgets > LEAST_BUDGET] == 1.0).all())
        return (plan.objective, plan.scope, plan.balance_aware) == (self.objective, self.scope, self.balance_aware)

    def maker(self, profile: "HeadProfile", tp_size: int) -> "PlanMaker":
        """Plans with these budgets; ValueError where the profile lacks what they weigh errors by."""
        from shplb.planning import PlanMaker

        return PlanMaker(
            profile,
            tp_size=tp_size,
            objective=self.objective,
            scope=self.scope,
            weighing=self.weighing,
            balance_aware=self.balance_aware,
        )


class Score(NamedTuple):
    """What pages are scored by: fields of ``SparsityRule``."""

    score: ScoreName
    stride: int
    source: str


class Choice(NamedTuple):
    """How pages are chosen; ``planned``: lists are as long as budgets say, so that they are known before the scores."""

    choice: ChoiceName
    planned: bool
    source: str


_OURS, _PAPER = "this project", "S-HPLB, arXiv 2603.10353"
_MINFERENCE, _XATTENTION = "MInference, arXiv 2407.02490", "XAttention, arXiv 2503.16428"

BUDGETS: dict[str, Budgets] = {
    "min_error": Budgets("min_error", "model", "none", False, _OURS),
    "min_error_layer": Budgets("min_error", "layer", "none", False, _OURS),
    "min_error_residual": Budgets("min_error", "model", "residual", False, _OURS),
    "min_error_fisher": Budgets("min_error", "model", "fisher", False, f"{_OURS}; Fisher: Martens 2020"),
    "balance_aware": Budgets("min_error", "model", "none", True, _OURS),
    "max_min": Budgets("max_min", "model", "none", False, _PAPER),
    "max_min_layer": Budgets("max_min", "layer", "none", False, _PAPER),
    "max_mean": Budgets("max_mean", "model", "none", False, "Everett 1963, Fox 1966"),
    "uniform": Budgets("uniform", "model", "none", False, "plain top-k"),
    "dense": Budgets("uniform", "model", "none", False, "every page", dense=True),
}

SCORES: dict[str, Score] = {
    "mean_pool": Score("mean_pool", 16, f"block estimation of {_MINFERENCE}, and FlexPrefill, arXiv 2502.20766"),
    "antidiagonal_8": Score("antidiagonal", 8, _XATTENTION),
    "antidiagonal_16": Score("antidiagonal", 16, _XATTENTION),
    "min_max": Score("min_max", 16, "Quest, arXiv 2406.10774"),
    "oracle": Score("oracle", 16, "the mass itself"),
}

CHOICES: dict[str, Choice] = {
    "top_k": Choice("top_k", True, "block top-k"),
    "top_p": Choice("top_p", False, f"{_XATTENTION}; FlexPrefill, arXiv 2502.20766"),
    "a_shape": Choice("a_shape", True, f"StreamingLLM, arXiv 2309.17453; {_MINFERENCE}"),
    "vertical_slash": Choice("vertical_slash", True, _MINFERENCE),
}


class Policy(NamedTuple):
    """One of each table, by name.

    Attributes:
        budgets: how the plan's budgets are made; a server takes them from its plan, whatever the policy says.
        coverage: of ``top_p``, share of the estimated mass that a list must hold.
        tail: of a prompt, how many of its last tokens stay dense; None: as many as the plan says.
    """

    budgets: str
    score: str
    choice: str
    coverage: float = 0.9
    tail: int | None = None

    @property
    def is_of_budgets_only(self) -> bool:
        """Whether nothing but budgets, and the length of dense tails, tells it from the default."""
        return (self.score, self.choice) == POLICIES[DEFAULT][1:3]

    def rule(self, rule: SparsityRule) -> SparsityRule:
        """``rule`` with this policy's score, choice and tail."""
        score = SCORES[self.score]
        # Lines are those of the last queries that run sparse, so these must be the prompt's.
        tail = 0 if self.choice == "vertical_slash" else self.tail
        return msgspec.structs.replace(
            rule,
            score=score.score,
            score_stride=score.stride,
            choice=CHOICES[self.choice].choice,
            coverage=self.coverage,
            dense_tail_tokens=rule.dense_tail_tokens if tail is None else tail,
        )


#: The default first; the rest is experimental.
POLICIES: dict[str, Policy] = {
    "shplb": Policy("min_error", "mean_pool", "top_k"),
    "uniform": Policy("uniform", "mean_pool", "top_k"),
    "min_error_layer": Policy("min_error_layer", "mean_pool", "top_k"),
    "min_error_residual": Policy("min_error_residual", "mean_pool", "top_k"),
    "min_error_fisher": Policy("min_error_fisher", "mean_pool", "top_k"),
    "balance_aware": Policy("balance_aware", "mean_pool", "top_k"),
    "max_min": Policy("max_min", "mean_pool", "top_k"),
    "max_min_layer": Policy("max_min_layer", "mean_pool", "top_k"),
    "max_mean": Policy("max_mean", "mean_pool", "top_k"),
    "dense": Policy("dense", "mean_pool", "top_k"),
    "streaming_llm": Policy("uniform", "mean_pool", "a_shape", tail=0),
    "minference": Policy("uniform", "mean_pool", "vertical_slash", tail=0),
    "xattention": Policy("uniform", "antidiagonal_8", "top_p", tail=0),
    "flexprefill": Policy("uniform", "mean_pool", "top_p", tail=0),
    "quest": Policy("uniform", "min_max", "top_k"),
    "oracle": Policy("min_error", "oracle", "top_k"),
}
DEFAULT = next(iter(POLICIES))


def parse_policy(text: str) -> Policy:
    """A policy from ``NAME``, or ``NAME,key=value,...`` with ``score``, ``choice``, ``coverage`` and ``tail`` changed.

    Example: ``shplb,score=antidiagonal_16`` is the default with another score.

    Raises:
        ValueError: names what is wrong and what was expected.
    """
    name, *changes = (part.strip() for part in text.split(","))
    if name not in POLICIES:
        raise ValueError(f"policy is '{name}', expected {' or '.join(POLICIES)}")
    policy = POLICIES[name]
    for change in changes:
        key, _, value = change.partition("=")
        if key == "coverage":
            policy = policy._replace(coverage=parse_share(value, "coverage", "the estimated mass"))
            continue
        if key == "tail":
            policy = policy._replace(tail=_tokens(value))
            continue
        tables: dict[str, tuple[str, ...]] = {"score": tuple(SCORES), "choice": tuple(CHOICES)}
        if key not in tables:
            raise ValueError(f"policy changes '{key}', expected score=, choice=, coverage= or tail=")
        if value not in tables[key]:
            raise ValueError(f"{key} is '{value}', expected {' or '.join(tables[key])}")
        policy = policy._replace(score=value) if key == "score" else policy._replace(choice=value)
    if policy.choice == "vertical_slash" and policy.tail:
        raise ValueError(f"tail is {policy.tail}, expected 0 with choice vertical_slash, which needs the last queries")
    return policy


def _tokens(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > MOST_TOKENS:
        raise ValueError(f"tail is '{text}', expected a number of tokens, 0 to {MOST_TOKENS}")
    return int(text)
