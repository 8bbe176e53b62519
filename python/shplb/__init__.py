# SPDX-License-Identifier: Apache-2.0
"""S-HPLB for SGLang: head-adaptive sparse attention, balanced over tensor-parallel GPUs.

Importing this package needs numpy only: no torch, CUDA or SGLang.
"""

from shplb._core import Infeasible, InvalidArgument
from shplb.budget import Budgets, allocate_budgets
from shplb.placement import Placement, place_heads

__version__ = "0.1.0"

__all__ = [
    "Budgets",
    "Infeasible",
    "InvalidArgument",
    "Placement",
    "__version__",
    "allocate_budgets",
    "place_heads",
]
