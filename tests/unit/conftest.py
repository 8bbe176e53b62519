# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama folder, a plan for it, and an environment in which ServerArgs can be built without a GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_arguments import plan_of, write_model

from shplb.sglang.cpu import cpu_environment


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions must not depend on rates that this machine's user has measured."""
    if "SHPLB_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path / "own-cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def server_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SGLang writes to the environment while it resolves arguments; put everything back."""
    before = dict(os.environ)
    for name, value in cpu_environment(1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRITON_INTERPRET")
    yield
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def llama_plan(llama: Path, tmp_path: Path) -> str:
    plan_of(llama).save(tmp_path / "a.plan")
    return str(tmp_path / "a.plan")
