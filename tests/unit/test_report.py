# SPDX-License-Identifier: Apache-2.0
"""The HTML report as a file: complete in itself, small, safe to open, and refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import typer
from report_pages import HOSTILE, PLAN, PROFILE, Tags, figures, report_of, shown
from synthetic import is_one_sentence, make_profile, make_serving_plan, make_shape
from typer.testing import CliRunner

from shplb.commands.report import report
from shplb.model import Fingerprint
from shplb.planning import make_plan
from shplb.report import BenchFileError, ReportError, make_report
from shplb.report.benches import MAX_ROWS, read_bench


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_of(tmp_path_factory.mktemp("report"), PLAN, PROFILE)


def test_every_figure_is_well_formed(page: str) -> None:
    drawn = figures(page)
    assert len(drawn) == 8  # loads, two maps, two curves, two scatters, timeline
    assert all(figure.get("viewBox") and figure.get("aria-label") for figure in drawn)
    assert Tags(page).open == []


def test_nothing_reaches_out(page: str) -> None:
    lowered = page.lower()
    assert not [word for word in ("http://", "https://", "//cdn", "@import", "url(") if word in lowered]
    for tag, attributes in Tags(page).seen:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "data", "xlink:href"} & set(attributes), (tag, attributes)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_a_large_model_stays_small(tmp_path: Path) -> None:
    profile = make_profile(make_shape(layers=80, kv_heads=8, group=8))
    report_of(tmp_path, make_plan(profile, tp_size=8, density=0.2), profile)
    assert 1_000_000 < (tmp_path / "r.html").stat().st_size < 5_000_000


def test_without_a_profile(tmp_path: Path) -> None:
    page = report_of(tmp_path, PLAN)
    assert len(figures(page)) == 3
    assert "No profile was given" in page
    assert "Stability" not in page


def test_another_profile_of_the_model_is_said(tmp_path: Path, page: str) -> None:
    sentence = "not the one that the plan was made from"
    assert sentence not in page
    assert sentence in report_of(tmp_path, PLAN, make_profile(PROFILE.model, documents=3, seed=1))


def test_one_rank_and_a_head_size_without_kernel(tmp_path: Path) -> None:
    page = report_of(tmp_path, make_serving_plan())
    assert "nothing to place" in page
    assert len(figures(page)) == 2
    odd = msgspec.structs.replace(PLAN, model=msgspec.structs.replace(PLAN.model, head_dim=80))
    page = report_of(tmp_path, odd)
    assert "head_dim: got 80" in page
    assert len(figures(page)) == 2


def test_odd_but_valid_files(tmp_path: Path) -> None:
    """All heads padding, no load anywhere, one length of one token, one measured density."""
    padded = make_profile(make_shape(inert=(0, 1, 2, 3)))
    page = report_of(tmp_path, make_serving_plan(padded.model, tp_size=2), padded)
    assert len(figures(page)) == 4
    idle = make_serving_plan(tp_size=4, loads=np.zeros((3, 4), dtype=np.int64))
    assert shown(report_of(tmp_path, idle), "imbalance-placed") == "1.000"
    tiny = make_serving_plan(tp_size=2, lengths=np.array([1]), budgets=np.ones((3, 8, 1)))
    assert "1 new tokens after 0 cached ones" in report_of(tmp_path, tiny)
    one = {name: getattr(PROFILE, name)[..., -1:] for name in ("densities", "error", "recovery")}
    assert len(figures(report_of(tmp_path, PLAN, msgspec.structs.replace(PROFILE, **one)))) == 8


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    bench = tmp_path / "b.json"
    bench.write_text(json.dumps({"command": HOSTILE, HOSTILE: HOSTILE, "rows": [{HOSTILE: HOSTILE}, {"a": [HOSTILE]}]}))
    model = msgspec.structs.replace(PROFILE.model, architecture=HOSTILE)
    changes: dict[str, Any] = {"model": model, "fingerprint": Fingerprint(HOSTILE), "versions": {HOSTILE: HOSTILE}}
    profile = msgspec.structs.replace(PROFILE, documents=(HOSTILE,) * 3, documents_hash=HOSTILE, **changes)
    plan = msgspec.structs.replace(PLAN, objective=HOSTILE, scope=HOSTILE, profile_hash=HOSTILE, **changes)
    page = report_of(tmp_path, plan, profile, [bench])
    tags = Tags(page)
    assert [tag for tag, _ in tags.seen].count("script") == 1
    assert not [tag for tag, _ in tags.seen if tag == "img"]
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert tags.open == []
    assert page.count("&lt;script&gt;alert(1)") > 15
    assert "\x00" not in page
    assert "\x1b" not in page


def refused(error: type[Exception], folder: Path, *arguments: Any, name: str = "w/r.html") -> str:
    before = sorted(folder.rglob("*"))
    with pytest.raises(error) as caught:
        make_report(*arguments, out=folder / name)
    assert is_one_sentence(caught.value), caught.value
    assert sorted(folder.rglob("*")) == before
    return str(caught.value)


def test_refused_reports(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    other = msgspec.structs.replace(PROFILE, fingerprint=Fingerprint("another", "weights"))
    assert "fingerprint config/weights, the profile is of another/" in refused(ReportError, tmp_path, PLAN, other)
    smaller = make_profile(make_shape(layers=4, kv_heads=8, inert=(7,)))
    assert "the plan is for 5 layers of 16 query and 8 KV heads, the profile is of 4" in refused(
        ReportError, tmp_path, PLAN, smaller
    )
    assert "there is no folder" in refused(ReportError, tmp_path, PLAN, name="missing/r.html")
    assert "is a folder" in refused(ReportError, tmp_path, PLAN, name="w")
    (tmp_path / "long.json").write_text(json.dumps({f"k{k}": [{"a": "x" * 150}] * 200 for k in range(200)}))
    assert "more than 5 MB" in refused(ReportError, tmp_path, PLAN, None, [tmp_path / "long.json"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        (b"{", "is not a JSON file"),
        (b"\xff\xfe", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b"3", "neither an object"),
        (b"[1, 2]", "neither an object"),
        (b" " * (17 << 20), "larger than 16 MB"),
    ],
)
def test_refused_benches(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "w").mkdir()
    if content is not None:
        (tmp_path / "b.json").write_bytes(content)
    assert message in refused(BenchFileError, tmp_path, PLAN, None, [tmp_path / "b.json"])


def test_benches_become_tables(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"name": "a", "time": {"median_us": 1.23456789, "n": 3}}, {"name": "b", "ok": None}]
    content: dict[str, Any] = {"command": "x.py", "seed": 7, "versions": {"shplb": "0"}, "rows": rows}
    content["more"] = {"deep": [{"n": 1}] * 300}
    (tmp_path / "b.json").write_text(json.dumps(content))
    bench = read_bench(tmp_path / "b.json")
    assert bench.provenance == [("command", "x.py"), ("seed", "7"), ("versions", "shplb 0")]
    first, second = bench.tables
    assert first.columns == ["name", "time.median_us", "time.n", "ok"]
    assert first.rows == [["a", "1.23457", "3", ""], ["b", "", "", "-"]]
    assert (second.name, len(second.rows), second.left_out) == ("more.deep", MAX_ROWS, 300 - MAX_ROWS)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert [table.name for table in read_bench(tmp_path / "b.json").tables] == ["rows"]


def test_the_repository_s_results_are_shown(tmp_path: Path) -> None:
    results = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.json"))
    page = report_of(tmp_path, PLAN, None, results)
    assert results
    assert all(f"<h3>{path.name}</h3>" in page for path in results)
    assert "This file holds no table" not in page


def test_same_input_same_bytes(tmp_path: Path, page: str) -> None:
    assert report_of(tmp_path, PLAN, PROFILE) == page


def test_the_command(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan")
    PROFILE.save(tmp_path / "profile")
    app = typer.Typer()
    app.command()(report)
    files = [str(tmp_path / "plan"), "--profile", str(tmp_path / "profile"), "--out", str(tmp_path / "r.html")]
    done = CliRunner().invoke(app, [*files, "--json"])
    assert json.loads(done.stdout) == {
        "report": str(tmp_path / "r.html"),
        "bytes": (tmp_path / "r.html").stat().st_size,
        "plan_hash": PLAN.hash,
        "figures": [],
    }
    page = (tmp_path / "r.html").read_bytes()
    done = CliRunner().invoke(app, files)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"wrote {tmp_path}/r.html\n"
    assert (tmp_path / "r.html").read_bytes() == page
    done = CliRunner().invoke(app, [files[1 + 1], *files[1:]])
    assert "is a HeadProfile, but a ServingPlan is needed" in str(done.exception)
    assert "Example: shplb report" in CliRunner().invoke(app, ["--help"]).stdout
