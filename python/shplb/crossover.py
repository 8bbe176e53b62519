# SPDX-License-Identifier: Apache-2.0
"""From which prompt length on sparse prefill is predicted to pay."""

import numpy as np

from shplb.device import H200, Device
from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.prediction import CHUNK_TOKENS, MOST_TOKENS
from shplb.sparsity import PAGE_SIZE

#: Beyond this no crossover is looked for.
LONGEST = 1 << 18


def crossover_tokens(plan: ServingPlan, device: Device = H200, longest: int = LONGEST) -> int | None:
    """Least length, in whole pages, from which every prompt that is prefilled alone takes the sparse path somewhere.

    A prompt does so if one of its chunks of 8192 tokens is predicted to be faster sparse, and then all longer ones with
    that chunk do too. So lengths up to one chunk are tried one page apart, then whole chunks. None where nothing pays
    up to ``longest`` tokens.
    """
    longest = min(longest, MOST_TOKENS)
    table = plan.budget_table(longest)
    planner = planner_of(
        plan, table.pages, plan.physical_to_logical, plan.tp_size, cost=device.cost, num_ctas=device.num_ctas
    )

    def pays(prefix: int, new: int) -> bool:
        return bool(np.any(planner.predict(np.array([prefix]), np.array([new])).sparse))

    first = min(CHUNK_TOKENS, longest)
    if pays(0, first):
        # Lengths just above others may stay dense again, where a block more makes the longest item longer.
        dense = [tokens for tokens in range(PAGE_SIZE, first, PAGE_SIZE) if not pays(0, tokens)]
        return (dense[-1] if dense else 0) + PAGE_SIZE
    return next((end for end in range(2 * first, longest + 1, first) if pays(end - first, first)), None)
