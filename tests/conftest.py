# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests: real SmolLM2 weights, converted once and kept under .cache/tests."""

import os
from pathlib import Path

import pytest

#: Where converted models and reference answers are kept between runs.
CACHE = Path(os.environ.get("SHPLB_TEST_CACHE") or Path(__file__).parents[1] / ".cache" / "tests")


def pytest_configure() -> None:
    """Give every pytest-xdist worker one core: servers of two workers that share cores spin against each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a float32 Hugging Face folder: 9 query and 3 KV heads."""
    from shplb.hf.gguf import convert_smollm2

    return convert_smollm2(CACHE / "smollm2-float32")


@pytest.fixture(scope="session")
def smollm2_padded(smollm2: Path) -> Path:
    """The same model padded to 4 KV groups, so that it splits over 2 ranks."""
    from shplb.hf.padding import pad_kv_groups

    return pad_kv_groups(smollm2, CACHE / "smollm2-float32-padded", 4)
