# SPDX-License-Identifier: Apache-2.0
"""What bench_selection measures, on a tiny model: against dense attention masked by hand, and its order of scores."""

import msgspec
import numpy as np
import pytest
import torch
from bench_selection import ORACLE, SERVED, row_of, rules_of
from selection_probe import Findings, SelectionProbe
from tiny_models import VOCABULARY, tiny_model

from shplb.plan import ServingPlan
from shplb.policies import BUDGETS
from shplb.sparsity import SparsityRule

LENGTH = 640
RULE = SparsityRule(query_block=64, dense_below_tokens=128, floor_pages=1)
TOKENS = [(31 * index * index + 7 * index) % VOCABULARY for index in range(LENGTH)]
SCORES = [SERVED, "antidiagonal_8", ORACLE]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> SelectionProbe:
    folder = tmp_path_factory.mktemp("models") / "model"
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}
    model = tiny_model("llama", **sizes, max_position_embeddings=LENGTH)
    with torch.no_grad():  # attention of random weights is nearly uniform
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 12
    model.save_pretrained(folder)
    return SelectionProbe(folder, LENGTH, RULE)


@pytest.fixture(scope="module")
def plan(probe: SelectionProbe) -> ServingPlan:
    return BUDGETS["min_error"].plan(probe.profile([TOKENS]), 1, 0.4)


@pytest.fixture(scope="module")
def found(probe: SelectionProbe, plan: ServingPlan) -> Findings:
    return probe.measure(TOKENS, plan, rules_of(plan, SCORES), rows=64, seed=0)


def test_the_oracle_recovers_most(found: Findings) -> None:
    assert found.rows == LENGTH - RULE.dense_below_tokens
    for name in SCORES:
        assert np.all(found.recovered[name] <= found.recovered[ORACLE] + 1e-3)
        assert np.all(found.recovered[name] < found.rows)
    assert found.recovered[SERVED].sum() < found.recovered[ORACLE].sum()
    assert np.all(found.error[ORACLE] < found.norm)


def test_everything_kept_loses_nothing(probe: SelectionProbe, plan: ServingPlan) -> None:
    whole = msgspec.structs.replace(plan, budgets=np.ones_like(plan.budgets))
    found = probe.measure(TOKENS, whole, rules_of(whole, [SERVED]), rows=8, seed=0)
    np.testing.assert_allclose(found.recovered[SERVED], found.rows, rtol=1e-5)
    assert np.all(found.error[SERVED] <= 1e-9 * found.norm)


def test_first_layer_is_as_the_sparse_path_computes_it(
    probe: SelectionProbe, plan: ServingPlan, found: Findings
) -> None:
    """The first layer's input is the same in both, so errors are what the served path's output differs by."""
    outputs: dict[str, list[torch.Tensor]] = {"dense": [], "sparse": []}
    projection = probe.model.model.layers[0].self_attn.o_proj
    for name, under in (("dense", None), ("sparse", plan)):
        handle = projection.register_forward_pre_hook(
            lambda module, arguments, name=name: outputs[name].append(arguments[0][0])
        )
        probe.logits(TOKENS, under)
        handle.remove()
    delta = (outputs["sparse"][0] - outputs["dense"][0])[RULE.dense_below_tokens :].view(-1, 4, 16)
    weight = projection.weight.detach().view(-1, 4, 16)
    error = torch.einsum("rhd,ohd->rho", delta, weight).square().sum(dim=(0, 2))
    np.testing.assert_allclose(found.error[SERVED][0], error.numpy(), rtol=1e-3)


def test_rows_of_the_result(found: Findings) -> None:
    losses = {"": np.array([2.0, 3.0]), SERVED: np.array([2.3, 3.3]), ORACLE: np.array([2.2, 3.2])}
    row = row_of(SERVED, found, losses)
    assert row["nll_over_dense"] == pytest.approx(0.3)
    assert row["nll_gap_added"] == pytest.approx(0.5)
    assert row["least_recovered_of_oracle"] <= row["recovered_of_oracle"] < 1.0
    assert row_of(ORACLE, found, losses)["recovered_of_oracle"] == 1.0
