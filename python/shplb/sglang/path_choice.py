# SPDX-License-Identifier: Apache-2.0
"""``$SHPLB_PATH``: which way prefill takes. A switch for tests and experiments; serving needs ``auto``.

An environment variable, since ranks inherit it and the patch of SGLang needs no further field.
"""

import os
from typing import Literal, cast, get_args

from shplb.planner import CostModel
from shplb.sglang.refusal import StartRefusedError

PathChoice = Literal["auto", "sparse"]

PATH_VARIABLE = "SHPLB_PATH"

# Under these costs the planner finds every prefill faster sparse; it still leaves one new token to the base backend.
# Items and tiles keep the proportion of real costs, so that CTAs get the same work; predicted times mean nothing.
SPARSE_AT_ANY_PRICE = CostModel(item_ns=42, kv_tile_ns=100, dense_kv_tile_ns=100_000, select_pair_ps=0, layer_ns=0)


def path_choice() -> PathChoice:
    """``auto``: as predicted to be fastest (the default). ``sparse``: ours wherever more than one token is new.

    Raises:
        StartRefusedError: another value.
    """
    value = os.environ.get(PATH_VARIABLE) or "auto"
    if value not in get_args(PathChoice):
        raise StartRefusedError(f"{PATH_VARIABLE} is {value}, expected auto or sparse; unset it.")
    return cast(PathChoice, value)
