# SPDX-License-Identifier: Apache-2.0
"""The report in headless Chromium: the script runs under the page's own policy, and the page fits its screen."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_pages import PLAN, PROFILE, report_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

#: Chooses an order and a length, as a person would, and writes what is then to be seen into the document.
_PROBE = """
const figure = document.querySelector("figure.heat-map");
const choose = (name, value) => {
  const select = figure.querySelector(`select[name=${name}]`);
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const row = (layer) => [...figure.querySelectorAll(".row")[layer].children]
  .sort((a, b) => a.getAttribute("x") - b.getAttribute("x")).map((cell) => cell.textContent);
const found = {};
choose("order", "sorted"); found.sorted = row(2);
choose("order", "placed"); found.placed = row(2);
choose("length", "0"); choose("order", "model"); found.first = row(2);
figure.querySelector("rect").dispatchEvent(new Event("click", {bubbles: true}));
found.readout = figure.querySelector(".readout").textContent;
document.body.innerHTML = "";
document.title = JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report_of(folder, PLAN, PROFILE)
    return folder / "r.html"


def chromium(folder: Path, page: Path, *options: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={folder / 'user'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def values(titles: list[str]) -> list[float]:
    return [float(title.split()[-1]) for title in titles if not title.endswith("padding")]


def title_of(folder: Path, page: str) -> str:
    """Title of a page after its scripts have run."""
    (folder / "probe.html").write_text(page, encoding="utf-8")
    found = re.search(r"<title>(.*?)</title>", chromium(folder, folder / "probe.html", "--dump-dom"), re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_the_script_runs_under_the_page_s_policy(tmp_path: Path, report: Path) -> None:
    assert report.read_text(encoding="utf-8").count('class="controls" hidden') == 2
    dom = chromium(tmp_path, report, "--dump-dom")
    assert dom.count('class="controls"') == 2
    assert 'class="controls" hidden' not in dom


def test_orders_lengths_and_readout(tmp_path: Path, report: Path) -> None:
    page, count = re.subn(r"script-src '[^']*'", "script-src 'unsafe-inline'", report.read_text(encoding="utf-8"))
    assert count == 1
    found = json.loads(title_of(tmp_path, page.replace("</body>", f"<script>{_PROBE}</script></body>")))
    shares = [f"{share:.4g}" for share in PLAN.budgets[2, :14, -1]]
    assert values(found["sorted"]) == sorted(map(float, shares), reverse=True)
    assert all(title.endswith("padding") for title in found["sorted"][-2:])
    groups = [int(re.findall(r"KV group (\d+)", title)[0]) for title in found["placed"]]
    assert groups[::2] == groups[1::2] == PLAN.physical_to_logical[2].tolist()
    assert values(found["first"]) == [float(f"{share:.4g}") for share in PLAN.budgets[2, :14, 0]]
    assert str(found["readout"]).startswith("layer 0, head 0, KV group 0, rank ")


@pytest.mark.parametrize("width", [360, 390, 1200])
def test_the_page_fits_the_screen(tmp_path: Path, report: Path, width: int) -> None:
    """Figures and tables scroll in their own boxes. A frame stands for the phone: windows are never that narrow."""
    inner = html.escape(report.read_text(encoding="utf-8"))
    script = "onload = () => { document.title = frames[0].document.documentElement.scrollWidth; };"
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{inner}"></iframe>'
    outer = f"<!DOCTYPE html><title>-</title>{frame}<script>{script}</script>"
    assert title_of(tmp_path, outer) == str(width)


def test_light_and_dark_are_drawn(tmp_path: Path, report: Path) -> None:
    from PIL import Image

    corners = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{name}.png"
        options = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,3000", f"--screenshot={shot}")
        chromium(tmp_path, report, *options)
        with Image.open(shot) as image:
            corners[name] = sum(image.convert("RGB").getpixel((2, 2)))  # type: ignore[arg-type]
            assert len(set(image.convert("L").resize((90, 300)).tobytes())) > 50  # not an empty page
    assert corners["light"] > 700
    assert corners["dark"] < 100
