# SPDX-License-Identifier: Apache-2.0
"""--shplb-policy through SGLang's own parser, and what it does to the plan that a rank loads."""

import argparse
import os

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
    assert Environment(policy="shplb").apply(plan).hash == plan.hash
    changed = Environment(policy="minference").apply(plan)
    assert changed.rule == POLICIES["minference"].rule(plan.rule)
    assert changed.rule != plan.rule
    assert changed.hash != plan.hash, "ranks with other policies must not serve together"
    assert (changed.budgets == plan.budgets).all()
