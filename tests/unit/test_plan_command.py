# SPDX-License-Identifier: Apache-2.0
"""`shplb plan`: targets, table and JSON with the same facts."""

import json
from pathlib import Path

import pytest
import typer
from synthetic import is_one_sentence, make_profile, make_shape
from typer.testing import CliRunner, Result

from shplb.commands.plan import plan
from shplb.plan import ServingPlan
from shplb.prediction import predict_prompt

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(plan)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "profile"
    make_profile(make_shape(layers=4, kv_heads=16, group=2, inert=(3,))).save(path)
    return path


def run(profile: Path, *arguments: object) -> Result:
    """At a density of 0.45 where ``arguments`` hold no target."""
    command = [str(profile), "--out", str(profile.parent / "plan"), *map(str, arguments)]
    if not {"--density", "--recovery", "--latency-budget"} & set(command):
        command += ["--density", "0.45"]
    return CliRunner().invoke(app, command, env={"COLUMNS": "100"})


@pytest.mark.parametrize("tp_size", [1, 2, 8, 16])
def test_table_fits_and_says_what_json_says(profile: Path, tp_size: int) -> None:
    done = run(profile, "--tp", tp_size, "--density", 0.1)
    assert done.exit_code == 0, done.output
    body = done.stderr[: done.stderr.index("wrote ")]
    assert all(len(line) <= 100 for line in body.splitlines())
    assert "…" not in body
    assert "conservative" in body
    facts = json.loads(run(profile, "--tp", tp_size, "--density", 0.1, "--json").stdout)
    rows = {line.split("  ")[0].strip(): line.split() for line in body.splitlines() if "." in line}
    for name, row in (("contiguous", "contiguous"), ("placed", "placed"), ("lower_bound", "lower bound")):
        time = facts["prediction"][f"{'bound' if name == 'lower_bound' else name}_ms"]
        if tp_size > 1:
            assert f"{time:.3f}" in rows[row]
            assert rows[row][-1] == f"{facts['imbalance'][name]:.3f}"
        else:
            assert row not in rows
    assert f"{facts['prediction']['dense_ms']:.3f}" in rows["dense"]
    assert (tp_size == 1) == ("this plan" in rows)


def test_json_describes_the_file(profile: Path) -> None:
    done = run(profile, "--tp", 2, "--recovery", 0.9, "--at-tokens", 50_000, "--json")
    facts, made = json.loads(done.stdout), ServingPlan.load(profile.parent / "plan")
    assert facts["plan_hash"] == made.hash
    assert facts["asked"] == {"recovery": 0.9}
    assert facts["density"] == made.density
    assert min(facts["recovery"][str(length)] for length in made.lengths[1:]) >= 0.9
    found = predict_prompt(made, 50_000)
    assert facts["prediction"]["placed_ms"] == found.placed_ms
    assert facts["prediction"]["extrapolated"] is True
    assert "longer than any profiled" in run(profile, "--at-tokens", 50_000).stderr


def test_a_latency_budget_is_kept(profile: Path) -> None:
    done = run(profile, "--tp", 2, "--latency-budget", 60, "--at-tokens", 131072, "--json")
    facts = json.loads(done.stdout)
    assert 55 < facts["prediction"]["placed_ms"] <= 60 < facts["prediction"]["dense_ms"]
    assert 0 < facts["density"] < 1
    shown = run(profile, "--tp", 2, "--latency-budget", 60, "--at-tokens", 131072).stderr
    assert f"--latency-budget 60 comes to density {facts['density']:g}" in shown


def test_without_a_target_there_is_no_plan(profile: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(profile), "--out", str(tmp_path / "plan")])
    assert is_one_sentence(done.exception)
    assert "give --density or --recovery or --latency-budget" in str(done.exception)
    assert not (tmp_path / "plan").exists()


def test_balance_aware_shows_its_gain(profile: Path) -> None:
    arguments = ["--tp", 8, "--density", 0.1, "--balance-aware"]
    done = run(profile, *arguments)
    assert all(len(line) <= 100 for line in done.stderr.splitlines() if not line.startswith("wrote "))
    assert "min_error, per model, balance-aware" in done.stderr
    gain = json.loads(run(profile, *arguments, "--json").stdout)["balance_gain"]
    rows = {line.split("  ")[0].strip(): line.split() for line in done.stderr.splitlines()}
    for row, side in (("apart", "apart"), ("together", "together"), ("apart, for the same error", "same_error")):
        facts = gain[side]
        shown = (
            f"{facts['mean_density']:.4f}",
            f"{facts['error'] / gain['apart']['error']:.4f}",
            f"{facts['slowest_pages'] / gain['apart']['slowest_pages']:.4f}",
            f"{facts['attention_ms']:.3f}",
        )
        assert tuple(rows[row][-4:]) == shown
    assert gain["together"]["error"] < 0.99 * gain["apart"]["error"]
    slower = gain["together"]["attention_ms"] > gain["apart"]["attention_ms"]
    assert ("predicted to be slower" in done.stderr) == slower
    assert json.loads(run(profile, "--tp", 4, "--json").stdout)["balance_gain"] is None
