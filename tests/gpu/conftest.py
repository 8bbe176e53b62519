# SPDX-License-Identifier: Apache-2.0
"""Tests that need an NVIDIA GPU of compute capability 9.0; elsewhere they are skipped, and say so."""

import sys
from pathlib import Path

import pytest
import torch
from setting import TRIAL_VARIABLE, is_trial

# The batches of the selection tests and the prompts and plans of the server tests serve here too.
for folder in ("unit", "integration"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ready = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not ready and not (is_trial() and item.get_closest_marker("server")):
                reason = f"needs an NVIDIA GPU of compute capability 9.0 ({TRIAL_VARIABLE}=1: a trial without)"
                item.add_marker(pytest.mark.skip(reason=reason))
