# SPDX-License-Identifier: Apache-2.0
"""Tests that need an NVIDIA GPU of compute capability 9.0; elsewhere they are skipped, and say so."""

import sys
from pathlib import Path

import pytest
import torch

# The batches of the selection tests serve here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ready = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not ready:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU of compute capability 9.0"))
