# SPDX-License-Identifier: Apache-2.0
"""Variants of a trial step that the attention bench compares."""

from collections.abc import Callable

import msgspec
import numpy as np
import torch
from dummy_model import lognormal_budgets

from shplb.kernels.flashinfer_sm90 import Sm90Prefill
from shplb.kernels.trial import Shape, Step, TrialStep
from shplb.policies import DEFAULT, POLICIES, Policy
from shplb.sparsity import SparsityRule, query_block_size

DEVICE = torch.device("cuda", 0)
DTYPE = torch.bfloat16


class OurStep(TrialStep):
    """Log-normal budgets of mean ``density``."""

    def __init__(
        self, shape: Shape, step: Step, density: float, *, seed: int, sigma: float, shared_lists: bool = False,
        naive_order: bool = False, num_layers: int = 32, policy: Policy = POLICIES[DEFAULT],
    ) -> None:  # fmt: skip
        rule = policy.rule(SparsityRule(query_block=query_block_size(shape.head_dim), dense_below_tokens=0))
        shares = lognormal_budgets((shape.num_qo_heads,), density, sigma, seed)
        kernel = Sm90Prefill(DTYPE, shape.head_dim, DEVICE)
        super().__init__(kernel, rule, shape, step, shares, num_layers=num_layers, shared_lists=shared_lists, seed=seed)
        if naive_order:
            self._order_naively()
        if rule.choice == "top_p":
            self._tune_coverage(density)
        self.flops, self.density = self._computed()

    def _tune_coverage(self, density: float) -> None:
        """Find the coverage at which lists come to ``density``; of random keys no other has a meaning."""
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            self.prefill.rule = msgspec.structs.replace(self.prefill.rule, coverage=middle)
            self.select()
            low, high = (middle, high) if self._computed()[1] < density else (low, middle)

    def parts(self) -> dict[str, Callable[[], object]]:
        """The kernels of selection one by one."""
        prefill, step, pool = self.prefill, self.planned, self.pool
        queries, keys = prefill.pool_queries(step, pool.q), prefill.pool_keys(step, pool.k)
        scores = prefill.page_mass(step, queries, keys, self.sm_scale)
        return {
            "pool_keys": lambda: prefill.pool_keys(step, pool.k),
            "pool_queries": lambda: prefill.pool_queries(step, pool.q),
            "page_mass": lambda: prefill.page_mass(step, queries, keys, self.sm_scale),
            "top_pages": lambda: prefill.top_pages(step, 0, scores, step.page_indices),
        }

    @property
    def predicted_ms(self) -> float:
        return int(self.planned.plan.cta_makespan_ns[0]) / 1e6

    def _computed(self) -> tuple[float, float]:
        """Floating-point operations of all work items, and their share of dense."""
        rows, tokens = self.table(3).astype(np.float64), self.table(4).astype(np.float64)
        flops = float(4.0 * self.shape.head_dim * (rows * tokens - rows * (rows - 1) / 2).sum())
        return flops, flops / self.step.dense_flops(self.shape)

    def _order_naively(self) -> None:
        """Head after head, every CTA an equal number of items: what a schedule blind to list lengths does."""
        items, ctas = self.planned.plan.num_items, self.kernel.num_ctas
        info = self.planned.plan_info[0]
        order = np.lexsort((self.table(1), self.table(5)))
        for index in (0, 1, 2, 3, 4, 5):
            values = torch.from_numpy(self.table(index)[order].copy()).to(DEVICE)
            self.planned.words(info[index], items).copy_(values)
        indptr = np.linspace(0, items, ctas + 1).astype(np.int32)
        self.planned.words(info[6], ctas + 1).copy_(torch.from_numpy(indptr).to(DEVICE))
