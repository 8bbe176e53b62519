# SPDX-License-Identifier: Apache-2.0
"""Every policy has a name, a source and a line in the documentation; its budgets can be made from a profile."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from synthetic import is_one_sentence, make_profile

from shplb.policies import BUDGETS, CHOICES, DEFAULT, POLICIES, SCORES, Policy, parse_policy
from shplb.sparsity import ChoiceName, ScoreName, SparsityRule
from shplb.weighing import weighed

DOCUMENT = Path(__file__).parents[2] / "docs" / "policies.md"
RULE = SparsityRule(query_block=128)


def full_profile() -> "object":
    rng = np.random.default_rng(0)
    importance = rng.uniform(0.1, 2, (3, 8))
    return msgspec.structs.replace(
        make_profile(),
        importance=importance / importance.mean(),
        importance_method="fisher, 1 document",
        residual=np.array([1.0, 10.0, 100.0]),
    )


def test_the_default_is_what_rules_are_made_with() -> None:
    assert POLICIES[DEFAULT].rule(RULE) == RULE
    assert next(iter(BUDGETS)) == POLICIES[DEFAULT].budgets


def test_every_score_and_choice_of_the_rule_has_a_name() -> None:
    assert {each.score for each in SCORES.values()} == set(get_args(ScoreName))
    assert {each.choice for each in CHOICES.values()} == set(get_args(ChoiceName))
    for policy in POLICIES.values():
        assert (policy.budgets in BUDGETS, policy.score in SCORES, policy.choice in CHOICES) == (True, True, True)


def test_the_document_names_every_policy_with_its_source() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert set(rows) == {*BUDGETS, *SCORES, *CHOICES, *POLICIES}
    for table in (BUDGETS, SCORES, CHOICES):
        for name, each in table.items():
            for number in re.findall(r"arXiv (\d+\.\d+)", each.source):
                assert number in rows[name], name
    for name, policy in POLICIES.items():
        if name not in BUDGETS:
            assert all(f"`{part}`" in rows[name] for part in policy[:3]), name


@pytest.mark.parametrize("name", list(BUDGETS))
def test_budgets_come_out_as_named(name: str) -> None:
    plan = BUDGETS[name].plan(full_profile(), 2, 0.2)  # type: ignore[arg-type]
    assert BUDGETS[name].are_of(plan)
    assert plan.density == (1.0 if name == "dense" else 0.2)
    others = [other for other, budgets in BUDGETS.items() if budgets.are_of(plan)]
    assert all(other.startswith("min_error") for other in others) or others in ([name], ["uniform", "dense"])
    if BUDGETS[name].scope == "layer":
        means = plan.budgets[:, :, -1].mean(axis=1)
        np.testing.assert_allclose(means, means[0], rtol=1e-4)


def test_errors_over_the_residual_move_budgets_to_layers_that_are_changed_most() -> None:
    profile = full_profile()
    even, divided = (
        BUDGETS[name].maker(profile, tp_size=1).plan(0.2).budgets[:, :, -1]  # type: ignore[arg-type]
        for name in ("min_error", "min_error_residual")
    )
    assert divided[0].mean() > even[0].mean()
    assert divided[2].mean() < even[2].mean()
    weights = weighed(profile, "residual").importance  # type: ignore[arg-type]
    np.testing.assert_allclose(weights[0] / weights[2], 100.0)
    assert weights.mean() == pytest.approx(1.0)


def test_what_a_profile_lacks_is_one_sentence() -> None:
    for weighing, missing in (("residual", "residual stream"), ("fisher", "importance"), ("norm", "expected measured")):
        with pytest.raises(ValueError, match=missing) as caught:
            weighed(make_profile(), weighing)  # type: ignore[arg-type]
        assert is_one_sentence(caught.value)


def test_policies_are_read_from_text() -> None:
    assert parse_policy("shplb") == POLICIES["shplb"]
    changed = parse_policy("xattention, score=antidiagonal_16,coverage=0.95")
    assert changed == Policy("uniform", "antidiagonal_16", "top_p", 0.95, tail=0)
    assert parse_policy("xattention,tail=256").rule(SparsityRule(query_block=128)).dense_tail_tokens == 256
    tailed = msgspec.structs.replace(RULE, dense_tail_tokens=99)
    for text, tail in (("shplb", 99), ("max_min", 99), ("shplb,tail=7", 7), ("flexprefill", 0), ("minference", 0),
                       ("shplb,choice=vertical_slash", 0)):  # fmt: skip
        assert parse_policy(text).rule(tailed).dense_tail_tokens == tail
    rule = changed.rule(RULE)
    assert (rule.score, rule.score_stride, rule.choice, rule.coverage) == ("antidiagonal", 16, "top_p", 0.95)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fastest", "policy is 'fastest', expected shplb or"),
        ("shplb,score=max", "score is 'max', expected mean_pool or"),
        ("shplb,choice=all", "choice is 'all', expected top_k or"),
        ("shplb,coverage=2", "coverage is '2', expected a share"),
        ("shplb,coverage=x", "coverage is 'x', expected a share"),
        ("minference,tail=64", "tail is 64, expected 0 with choice vertical_slash"),
        ("shplb,tail=-1", "tail is '-1', expected a number of tokens"),
        ("shplb,tau=0.9", "policy changes 'tau', expected score="),
    ],
)
def test_wrong_text_says_what_was_expected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_policy(text)


def test_rules_refuse_what_there_is_not() -> None:
    for changes in ({"score": "sum"}, {"choice": "top"}, {"coverage": 0.0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            msgspec.convert({"query_block": 128, **changes}, SparsityRule)
