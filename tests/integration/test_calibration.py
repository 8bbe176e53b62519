# SPDX-License-Identifier: Apache-2.0
"""A server without a plan profiles the model, plans, and serves sparse."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from plugged_model import PluggedModel
from scenario import greedy, prompts, server
from transformers import AutoTokenizer

from shplb.plan import ServingPlan
from shplb.profile import HeadProfile
from shplb.texts import DOMAINS, calibration_documents
from shplb.texts.domains import domain_of

pytestmark = pytest.mark.server

# Calibration takes half of the context.
CONTEXT_TOKENS, PROMPT_TOKENS = 2048, 1500


@pytest.fixture(scope="module")
def calibrated(
    smollm2_short: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict, list[dict]]]:
    """(cache folder, counters of the server, answers) of a server that was started with --enable-shplb alone."""
    folder = tmp_path_factory.mktemp("calibration")
    flags = ["--enable-shplb", "--shplb-density", "0.3", "--context-length", str(CONTEXT_TOKENS)]
    flags += ["--shplb-policy", "shplb"]  # the default, by the flag that the plugin adds
    batch = prompts(smollm2_short, [PROMPT_TOKENS])
    with server(
        smollm2_short, folder / "server.log", 1, *flags, env={"SHPLB_CACHE_DIR": str(folder / "cache")}
    ) as running:
        running.wait_ready()
        yield folder / "cache", running.shplb_state(), [*greedy(running, batch), running.shplb_state()]


def test_server_without_a_plan_makes_one(calibrated: tuple[Path, dict, list[dict]]) -> None:
    cache, before, (answer, state) = calibrated
    (plan,) = cache.rglob("*.plan.safetensors")
    assert before["plan"] == str(plan)
    assert (before["sparse_steps"], before["policy"]) == (0, "shplb")
    assert len(answer["output_ids"]) > 0
    assert state["sparse_steps"] == 1  # the first chunk is within the 1024 tokens that stay dense
    assert 0.3 < state["density"] < 0.95
    (profile,) = cache.rglob("*.profile.safetensors")
    loaded = HeadProfile.load(profile)
    assert len(loaded.documents) == 12
    assert {domain_of(name) for name in loaded.documents} == set(DOMAINS)
    assert np.all(loaded.residual > 0)
    assert loaded.residual[-1] > loaded.residual[0], "the stream grows from layer to layer"
    recovery = ServingPlan.load(plan).recovery
    assert recovery.shape == (*loaded.importance.shape, 1)
    assert np.all((recovery > 0) & (recovery <= 1))


def test_profile_is_what_the_kernels_measure_in_transformers(
    calibrated: tuple[Path, dict, list[dict]], smollm2_short: Path
) -> None:
    profile = HeadProfile.load(next(calibrated[0].rglob("*.profile.safetensors")))
    tokens = int(profile.lengths[-1])
    (document,) = calibration_documents(tokens, AutoTokenizer.from_pretrained(smollm2_short), limit=1)
    assert document.name == profile.documents[0]
    other = PluggedModel(smollm2_short, tokens).profile([document.token_ids])
    assert profile.lengths.tolist() == [tokens]
    np.testing.assert_array_equal(profile.rows[0], other.rows[0, -1:])
    np.testing.assert_allclose(profile.recovery[0, ..., 0, :], other.recovery[0, ..., -1, :], atol=2e-3)
    error = other.error[0, ..., -1, :]
    np.testing.assert_allclose(profile.error[0, ..., 0, :], error, rtol=2e-2, atol=1e-3 * error.max())
