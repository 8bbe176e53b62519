# SPDX-License-Identifier: Apache-2.0
"""The README's tables are the bench results, and its commands exist."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tables_come_from_results() -> None:
    script = ROOT / "bench" / "readme_tables.py"
    run = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_ci_calls_the_test_command() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "    make test\n" in readme
    assert "\nmake test\n" in ci


def test_commands_exist() -> None:
    from typer.main import get_command

    from shplb.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    lines = (ROOT / "README.md").read_text().splitlines()
    used = {line.split()[1] for line in lines if line.startswith("    shplb ")}
    assert used
    assert used <= known
