# SPDX-License-Identifier: Apache-2.0
"""Feedback on two real GPUs that are equal: short steps say nothing, and by long ones speeds stay near 1."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dummy_model import DUMMY_OPTIONS, SHAPES, replicated, spread_plan, write_dummy_model
from near_tie import partings
from real_server import Answer, ask, serving
from scenario import prompts, random_plan
from setting import SETTING
from test_server import model_for

from shplb.sglang.environment import FEEDBACK, SAMPLE_EVERY

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs: nothing is timed on a CPU"),
]

Served = tuple[list[Answer], dict[str, Any]]

# One chunk each, so that both servers plan the same steps.
SHORT_LENGTHS = [1024 + 40 * index for index in range(25)]
# Eight layers like those of Llama-3.1-8B, in which every chunk takes more than 0.2 ms.
LONG_SHAPE, LONG_TOKENS, LONG_PROMPTS, CHUNK = "llama-3.1-8b-8layers", 65536, 6, 8192


def serve(model: Path, plan: Path, log: Path, batch: list[list[int]], feedback: str, *options: str) -> Served:
    env = {SAMPLE_EVERY: "1", FEEDBACK: feedback}
    with serving(model, log, *options, "--disable-radix-cache", plan=plan, tp_size=2, forced=True, env=env) as running:
        return [ask(running, prompt, SETTING.new_tokens) for prompt in batch], running.shplb_state()


def test_short_steps_say_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, plan = model_for(2, request), tmp_path / "plan.safetensors"
    random_plan(model, 2, plan, dense=False, replicas=1)
    options, batch = [*SETTING.options, *SETTING.equal_options], prompts(model, SHORT_LENGTHS)
    (before, off), (after, on) = (
        serve(model, plan, tmp_path / f"{name}.log", batch, name, *options) for name in ("off", "on")
    )
    assert (off["feedback"], on["feedback"]) == ("off", "on")
    for state in (off, on):
        assert state["sampled_steps"] >= len(batch) - 2
        assert state["sparse_steps"] == off["sparse_steps"] >= len(batch)
        assert state["dense_steps"] == off["dense_steps"]
        assert state["attention_time_drift"] is not None
        assert state["rank_speeds"] is None
        assert "time" not in state["drift_out_of_band"]  # forced paths predict nothing
    assert partings(before, after) == []


def test_by_long_steps_equal_gpus_stay_near_one(tmp_path: Path) -> None:
    model, plan = write_dummy_model(tmp_path / "model", LONG_SHAPE), tmp_path / "plan.safetensors"
    made = spread_plan(model, tp_size=2, density=0.5, sigma=0.5, seed=1, group_sigma=0.5)
    replicated(made, 1).save(plan)
    rng = np.random.default_rng(1)
    batch = rng.integers(SHAPES[LONG_SHAPE]["vocab_size"], size=(LONG_PROMPTS, LONG_TOKENS)).tolist()
    options = [*DUMMY_OPTIONS, *SETTING.options, "--chunked-prefill-size", str(CHUNK)]
    _, state = serve(model, plan, tmp_path / "log", batch, "on", *options)
    print("speeds", state["rank_speeds"], "bubble", state["measured_bubble"])
    assert state["sampled_steps"] >= LONG_PROMPTS * (LONG_TOKENS // CHUNK - 1)
    assert all(abs(speed - 1.0) < 0.05 for speed in state["rank_speeds"])  # they may go to 0.25 from it
    assert state["measured_bubble"] < 0.05
