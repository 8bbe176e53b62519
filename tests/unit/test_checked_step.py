# SPDX-License-Identifier: Apache-2.0
"""The self-check's comparison of one step with plain torch: passes what is right, sees what is wrong."""

import numpy as np
import pytest
import torch
from paged_attention import TorchPagedAttention

from shplb.kernels.checked_step import CheckedStep
from shplb.kernels.trial import Shape, Step, TrialStep
from shplb.sparsity import SparsityRule

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real kernel")


def trial(prefix: int = 0) -> TrialStep:
    kernel, rule = TorchPagedAttention(), SparsityRule(query_block=192, dense_below_tokens=0)
    made = TrialStep(kernel, rule, Shape(2, 1, 64), Step(prefix, 900), np.array([0.3, 0.5]))  # type: ignore[arg-type]
    made.run()
    return made


@pytest.mark.parametrize("prefix", [0, 333])
def test_a_right_step_passes(prefix: int) -> None:
    found = CheckedStep(trial(prefix)).worst()
    assert found.error < 1e-3
    assert abs(found.lost_mass) < 1e-3


def test_wrong_output_is_seen() -> None:
    made = trial()
    made.out[890] *= 1.5
    assert CheckedStep(made).worst().error > 0.01
    made.out[5, 0, 0] = float("nan")
    assert np.isnan(CheckedStep(made).worst().error)


def test_lists_of_other_pages_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trial()
    mass = made.prefill.page_mass
    monkeypatch.setattr(made.prefill, "page_mass", lambda *args: 1.0 / (mass(*args) + 1e-3))
    made.run()
    assert CheckedStep(made).worst().lost_mass > 0.01
