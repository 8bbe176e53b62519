# SPDX-License-Identifier: Apache-2.0
"""Memory: with nine tenths of the GPU given to SGLang, one prompt that fills the KV pool is still served.

Random weights in a shape whose KV cache is so wide that the pool holds about 140,000 tokens on 80 GB.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from dummy_model import DUMMY_OPTIONS, SHAPES, spread_plan, write_dummy_model
from real_server import ask, serving, used_tokens, wait_until_idle
from setting import SETTING, is_trial

from shplb.sparsity import PAGE_SIZE

pytestmark = pytest.mark.server

NEW_TOKENS = 8
# SGLang keeps a few pages back, and cuts the answer short where they would be needed.
LEFT_SHARE, LEFT_TOKENS = 0.03, 8 * PAGE_SIZE


def test_one_prompt_fills_the_pool(tmp_path: Path) -> None:
    shape = "tiny" if is_trial() else "wide-kv"
    model, plan = write_dummy_model(tmp_path / "model", shape), tmp_path / "plan.safetensors"
    spread_plan(model, tp_size=1, density=0.1, sigma=0.8, seed=1).save(plan)
    rng = np.random.default_rng(1)
    with serving(model, tmp_path / "log", *DUMMY_OPTIONS, *SETTING.full_pool_options, plan=plan) as running:
        capacity = running.get("/server_info")["internal_states"][0]["memory_usage"]["token_capacity"]
        length = capacity - max(int(LEFT_SHARE * capacity), LEFT_TOKENS)
        print(f"prompts of {length} tokens in a pool of {capacity}")
        for _ in range(2):  # the second has to evict the first
            prompt = rng.integers(SHAPES[shape]["vocab_size"], size=length).tolist()
            answer = ask(running, prompt, NEW_TOKENS)
            assert (answer.prompt_tokens, answer.cached_tokens) == (length, 0)
            assert (answer.finish, len(answer.tokens)) == ("length", NEW_TOKENS)
            assert all(math.isfinite(value) for step in answer.top for value in step.values())
        wait_until_idle(running)
        assert used_tokens(running) == 0
        state = running.shplb_state()
        assert state["sparse_steps"] >= 2
        assert state["density"] < 0.7
