# SPDX-License-Identifier: Apache-2.0
"""What the quality bench compares: variants by name, their plans, and the servers that are started for them."""

from pathlib import Path

import numpy as np
import pytest
from quality.fleet import ServerSettings
from quality.variants import Variant, VariantError, parse_variant, plan_at, save_plans
from synthetic import is_one_sentence, make_profile

from shplb.policies import BUDGETS
from shplb.quality.candidates import computed_density


def test_variants() -> None:
    assert parse_variant("dense").is_stock
    assert parse_variant("max_min_layer@0.25") == Variant("max_min_layer@0.25", 0.25, "max_min_layer")
    assert parse_variant("min_error+quest@0.1") == Variant("min_error+quest@0.1", 0.1, "min_error", "quest")
    assert parse_variant("quest@0.1") == Variant("quest@0.1", 0.1, "uniform", "quest")
    changed = "shplb,score=antidiagonal_16"
    assert parse_variant(f"{changed}@0.1") == Variant(f"{changed}@0.1", 0.1, "min_error", changed)
    ranks = parse_variant("min_error@0.1:tp3")
    assert (ranks.tp_size, ranks.twin) == (3, "min_error@0.1")
    for wrong in (
        "min_error",
        "min_error@0",
        "min_error@1.5",
        "@0.1",
        "uniform@x",
        "uniform@0.1:tp",
        "uniform@0.1:tp0",
    ):
        with pytest.raises(VariantError) as caught:
            parse_variant(wrong)
        assert is_one_sentence(caught.value)


def test_plans_have_the_asked_computed_density(tmp_path: Path) -> None:
    profile = make_profile()
    variants = [parse_variant(name) for name in ("dense", "uniform@0.6", "min_error@0.6", "max_min_layer@0.6")]
    plans = save_plans(variants, profile, 8192, tmp_path)
    assert set(plans) == {path.name.removesuffix(".plan.safetensors") for path in tmp_path.iterdir()}
    for plan in plans.values():
        assert computed_density(plan, 8192) == pytest.approx(0.6, rel=0.02)
    assert plans["max_min_layer@0.6"].scope == "layer"
    (ranks,) = save_plans([parse_variant("min_error@0.6:tp2")], profile, 8192, tmp_path).values()
    assert ranks.tp_size == 2
    assert np.array_equal(ranks.budgets, plans["min_error@0.6"].budgets)
    assert computed_density(plan_at(profile, BUDGETS["min_error"], 1.0, 8192), 8192) == 1.0


def test_servers_of_variants(tmp_path: Path) -> None:
    settings = ServerSettings(tmp_path, "cpu", 1, tmp_path, 8192, ["--random-seed", "7"], 60.0)
    stock = settings.server_of(parse_variant("dense"), 0)
    assert "--enable-shplb" not in stock.command
    assert "torch_native" in stock.command
    assert "SHPLB_PATH" not in stock.env
    sparse = settings.server_of(parse_variant("quest@0.1"), 1)
    assert sparse.command[-2:] == ["--random-seed", "7"]
    assert sparse.command[sparse.command.index("--shplb-policy") + 1] == "quest"
    assert sparse.command[sparse.command.index("--shplb-plan") + 1] == str(tmp_path / "quest@0.1.plan.safetensors")
    assert sparse.env["SHPLB_PATH"] == "sparse"
    assert int(sparse.command[sparse.command.index("--max-total-tokens") + 1]) > 8192


def test_servers_are_dealt_over_gpus(tmp_path: Path) -> None:
    settings = ServerSettings(tmp_path, "cuda", 2, tmp_path, 8192, [], 60.0)
    made = [settings.server_of(parse_variant("dense"), index).command for index in range(3)]
    assert [command[command.index("--base-gpu-id") + 1] for command in made] == ["0", "1", "0"]
    ranks = settings.server_of(parse_variant("min_error@0.1:tp2"), 1).command
    assert ranks[ranks.index("--tp") + 1] == "2"
    assert "--base-gpu-id" not in ranks
