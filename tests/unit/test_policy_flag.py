# SPDX-License-Identifier: Apache-2.0
"""--shplb-policy through SGLang's own parser, and what it does to the plan that a rank loads."""

import argparse
import os

import msgspec
import numpy as np
import pytest
from synthetic import make_serving_plan

from shplb.policies import POLICIES
from shplb.sglang.environment import POLICY, Environment
from shplb.sglang.plugin import add_flag
from shplb.sglang.refusal import StartRefusedError


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    assert add_flag(None, parser) is None
    return parser.parse_args(arguments)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "")


def test_the_flag_reaches_the_ranks_through_the_environment() -> None:
    assert vars(parse()) == {}
    assert os.environ[POLICY] == ""
    assert vars(parse("--shplb-policy", "xattention,coverage=0.95")) == {}
    assert Environment.read().policy == "xattention,coverage=0.95"


def test_a_wrong_name_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parse("--shplb-policy", "fastest")
    assert "error: --shplb-policy: policy is 'fastest', expected shplb or" in capsys.readouterr().err
    monkeypatch.setenv(POLICY, "fastest")
    with pytest.raises(StartRefusedError, match="SHPLB_POLICY is fastest: policy is 'fastest', expected shplb"):
        Environment.read()


def test_the_policy_changes_score_and_choice_of_the_plan_and_nothing_else() -> None:
    plan = make_serving_plan()
    assert Environment().apply(plan) is plan
    assert Environment(policy="shplb").apply(plan) is plan
    changed = Environment(policy="minference").apply(plan)
    assert changed.rule == POLICIES["minference"].rule(plan.rule)
    assert changed.rule != plan.rule
    assert changed.hash != plan.hash, "ranks with other policies must not serve together"
    assert (changed.budgets == plan.budgets).all()


def test_budgets_are_not_changed_by_a_name() -> None:
    plan = make_serving_plan()
    assert (plan.objective, plan.scope) == ("min_error", "model")
    for name in ("max_min", "min_error_layer", "balance_aware", "uniform", "dense"):
        for policy in (name, f"{name},tail=64"):
            with pytest.raises(StartRefusedError, match=f"policy {policy} differs from the default in its budgets"):
                Environment(policy=policy).apply(plan)
    assert Environment(policy="min_error_residual").apply(plan).hash == plan.hash
    tailed = Environment(policy="shplb,tail=64").apply(msgspec.structs.replace(plan, replicas=1))
    assert (tailed.rule.dense_tail_tokens, tailed.replicas) == (64, 1)
    uniform = make_serving_plan(objective="uniform")
    assert Environment(policy="uniform").apply(uniform).hash == uniform.hash
    every_page = make_serving_plan(budgets=np.ones_like(plan.budgets))
    assert Environment(policy="dense").apply(every_page).hash == every_page.hash
