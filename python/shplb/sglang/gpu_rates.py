# SPDX-License-Identifier: Apache-2.0
"""The cost model that a server plans by: this GPU's own, if `shplb calibrate` has measured it, else an H200's."""

import logging
from typing import Any

import torch

from shplb.container import FileFormatError
from shplb.kernels.choice import PagedKernel
from shplb.kernels.flashinfer_public import PublicPrefill
from shplb.plan import ServingPlan
from shplb.planner import CostModel
from shplb.rates import GpuRates, default_cost, fields_of
from shplb.sglang.active_plan import cached_rates_path
from shplb.sglang.ranks import gather

logger = logging.getLogger(__name__)


def served_cost(plan: ServingPlan, runner: Any, kernel: PagedKernel) -> CostModel:
    """Rank 0's, on every rank: ranks must plan alike, and only its machine may have been calibrated."""
    found = fields_of(_found_here(plan, runner, kernel)) if runner.tp_rank == 0 else None
    return CostModel(**gather(runner, found)[0])


def _found_here(plan: ServingPlan, runner: Any, kernel: PagedKernel) -> CostModel:
    args, model = runner.server_args, plan.model
    base = args.prefill_attention_backend or args.attention_backend
    gpu, dtype = torch.cuda.get_device_name(), str(runner.dtype).removeprefix("torch.")
    path = cached_rates_path(gpu, dtype, model.head_dim, model.group_size, base)
    try:
        rates = GpuRates.load(path)
    except FileFormatError as error:
        if path.exists():
            logger.warning("S-HPLB: %s", error)
        logger.info("S-HPLB: sparse or dense is chosen by the rates of an H200; `shplb calibrate` measures yours")
        return default_cost(base, public=isinstance(kernel, PublicPrefill))
    logger.info("S-HPLB: sparse or dense is chosen by the rates measured on this %s", gpu)
    return rates.model
