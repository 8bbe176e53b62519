# SPDX-License-Identifier: Apache-2.0
"""When longer chunks are advised: where the longest list decides, and nowhere else."""

import msgspec
import numpy as np
from synthetic import is_one_sentence, make_serving_plan

from shplb.chunk_advice import advise_chunk
from shplb.model import ModelShape
from shplb.plan import ServingPlan
from shplb.prediction import placed_ms, predict_prompt

SHAPE = ModelShape("LlamaForCausalLM", 4, 32, 8, 128, 4096)
TOKENS = 126000


def plan_with(budgets: np.ndarray, tp_size: int) -> ServingPlan:
    """budgets: float64 [num_qo_heads], of all layers and lengths."""
    plan = make_serving_plan(SHAPE, tp_size=tp_size)
    return msgspec.structs.replace(plan, budgets=np.broadcast_to(budgets[None, :, None], plan.budgets.shape).copy())


def test_one_long_list_among_few_heads() -> None:
    budgets = np.full(32, 0.05)
    budgets[::4] = 0.6
    plan = plan_with(budgets, tp_size=8)
    advice = advise_chunk(plan, prediction := predict_prompt(plan, TOKENS))
    assert advice is not None
    assert advice.chunk_tokens in (16384, 32768)
    assert advice.usual_ms == prediction.placed_ms
    assert advice.attention_ms == placed_ms(plan, TOKENS, chunk_tokens=advice.chunk_tokens) < 0.95 * advice.usual_ms
    assert is_one_sentence(f"{advice.text}.")


def test_equal_lists_of_many_heads() -> None:
    plan = plan_with(np.full(32, 0.2), tp_size=1)
    assert advise_chunk(plan, predict_prompt(plan, TOKENS)) is None


def test_prompts_of_one_chunk() -> None:
    budgets = np.full(32, 0.05)
    budgets[::4] = 0.6
    plan = plan_with(budgets, tp_size=8)
    assert advise_chunk(plan, predict_prompt(plan, 8192)) is None
