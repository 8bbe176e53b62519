# SPDX-License-Identifier: Apache-2.0
"""A small stock SGLang tree for each test; the installed one is only read."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shplb.patching.rewriting import rewritten_files
from shplb.patching.tree import State, Tree, tree_state
from shplb.patching.upstream import Upstream, load_upstream


@pytest.fixture(scope="session")
def upstream() -> Upstream:
    return load_upstream()


@pytest.fixture(scope="session")
def installed() -> Path:
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("sglang is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="session")
def stock_files(installed: Path, upstream: Upstream) -> dict[str, bytes]:
    """Stock text of the patched files, whether or not the installed tree is patched."""
    state, fault = tree_state(Tree(installed, None), upstream)
    assert state is not State.MODIFIED, fault
    if state is State.APPLIED:
        return rewritten_files(installed, upstream, reverse=True)
    return {file.path: (installed / file.path).read_bytes() for file in upstream.files}


@pytest.fixture
def make_package(tmp_path: Path, stock_files: dict[str, bytes], upstream: Upstream) -> Callable[[str], Path]:
    """Makes a stock sglang package with a few neighbours of every kind at a path below tmp_path."""

    def make(where: str = "site/sglang") -> Path:
        package = tmp_path / where
        for path, content in stock_files.items():
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_bytes(content)
            os.utime(package / path, (1_700_000_000, 1_700_000_000))
        (package / "__init__.py").write_text("")
        (package / "_version.py").write_text(f"__version__ = version = '{upstream.version}'\n")
        neighbour = package / "srt" / "model_loader" / "run.sh"
        neighbour.write_text("#!/bin/sh\n")
        neighbour.chmod(0o755)
        (package / "srt" / "models").mkdir()
        (package / "srt" / "models" / "llama.py").write_text("x = 1\n")
        (package / "srt" / "link.py").symlink_to("models/llama.py")
        return package

    return make


@pytest.fixture
def package(make_package: Callable[[str], Path]) -> Path:
    return make_package("site/sglang")
