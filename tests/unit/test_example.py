# SPDX-License-Identifier: Apache-2.0
"""The committed example is what the commands make, and the README's figures are its figures."""

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from synthetic import assert_same

from shplb.plan import ServingPlan
from shplb.planning import make_plan
from shplb.profile import HeadProfile
from shplb.report import make_report, write_figures

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example"
REMAKE = "make it again as docs/example/README.md says"


@pytest.fixture(scope="module")
def profile() -> HeadProfile:
    return HeadProfile.load(EXAMPLE / "smollm2.profile.safetensors")


@pytest.fixture(scope="module")
def plan() -> ServingPlan:
    return ServingPlan.load(EXAMPLE / "smollm2.tp2.plan.safetensors")


def test_plan_is_the_profile_s(profile: HeadProfile, plan: ServingPlan) -> None:
    made = make_plan(profile, tp_size=2, density=0.35, dense_below_tokens=1024)
    assert_same(msgspec.structs.replace(made, versions=plan.versions), plan)


def test_figures_are_the_plan_s(profile: HeadProfile, plan: ServingPlan, tmp_path: Path) -> None:
    made = write_figures(plan, profile, tmp_path)
    assert {path.name for path in made} == {path.name for path in EXAMPLE.glob("*.svg")}
    for path in made:
        assert path.read_bytes() == (EXAMPLE / path.name).read_bytes(), f"{path.name}: {REMAKE}"
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in path.read_text()


def test_report_is_the_plan_s(profile: HeadProfile, plan: ServingPlan, tmp_path: Path) -> None:
    make_report(plan, profile, out=tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == (EXAMPLE / "smollm2.html").read_bytes(), REMAKE
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir()) < 1_500_000


def test_readme_shows_figures_that_exist() -> None:
    shown = re.findall(r'(?:src="|\]\()(docs/[^")]+)', (ROOT / "README.md").read_text())
    assert {"docs/example/loads.svg", "docs/example/budgets.svg"} <= set(shown)
    for name in shown:
        assert (ROOT / name.partition("#")[0]).exists(), name


def test_figures_without_a_profile_or_a_second_rank(plan: ServingPlan, tmp_path: Path) -> None:
    assert [path.name for path in write_figures(plan, None, tmp_path / "a")] == [
        "budgets.svg", "loads.svg", "timeline.svg",
    ]  # fmt: skip
    alone = msgspec.structs.replace(plan, tp_size=1)
    assert [path.name for path in write_figures(alone, None, tmp_path / "b")] == ["budgets.svg"]
