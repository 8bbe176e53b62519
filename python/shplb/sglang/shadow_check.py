# SPDX-License-Identifier: Apache-2.0
"""One sparse prefill step in many is checked: in every layer, a few rows of one query block are recomputed dense.

Nothing waits for the GPU: what it found is collected a few sparse steps later. Ranks plan alike, so they check the same
rows, come here at the same steps and add up what their heads found.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from shplb.kernels.shadow import shadow_rows
from shplb.plan import ServingPlan
from shplb.sglang.metadata import QueryBlock
from shplb.sglang.metrics import STEP_COUNTERS

#: Rows of the chosen block that are recomputed; all heads see the same ones.
ROWS = 16
#: Sparse steps after which a check is collected, unless the next one is due before.
_LAG = 8


class ShadowRows(NamedTuple):
    """Where a layer of this step is checked: index of the query block, and rows of it, from its first on."""

    block: int
    rows: np.ndarray


class ShadowCheck:
    """One per rank."""

    def __init__(
        self, plan: ServingPlan, rank: int, every: int, gather: Callable[[Any], list[Any]], seed: int = 0
    ) -> None:
        """every: sparse steps from one check to the next, 0 for none; gather: a value of every rank, by rank."""
        self._plan, self._every, self._gather, self._seed = plan, every, gather, seed
        self._heads = plan.local_qo_heads(rank) if every else np.empty((0, 0), dtype=np.int64)
        self._real = ~np.isin(self._heads, list(plan.model.inert_qo_heads))
        # Outputs of heads with a second copy are doubled, since their o_proj columns are halved.
        copied = plan.copied_qo_heads(rank) if every and plan.replicas else None
        self._counts_twice = None if copied is None else torch.from_numpy(copied)
        self._sparse = self._checked_at = 0
        self._end_rows = np.zeros(plan.model.num_layers, dtype=np.int64)
        self._found: torch.Tensor | None = None  # [num_layers, local heads, 4], of the step under way
        self._result: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
        self.active = False

    def begin_step(self, sparse: bool) -> None:
        """Count a planned step; decides whether it is checked."""
        self.active = False
        if not self._every or not sparse:
            return
        self._sparse += 1
        if self._result is not None and self._sparse >= self._checked_at + min(self._every, _LAG):
            self._collect()
        if self._sparse % self._every == 0 and self._result is None:
            self.active, self._checked_at, self._found = True, self._sparse, None

    def choose(self, layer: int, blocks: Sequence[QueryBlock]) -> ShadowRows | None:
        """Seeded by step and layer, the same on all ranks; None where all blocks see few enough tokens to be dense."""
        rule = self._plan.rule
        candidates = [
            index
            for index, block in enumerate(blocks)
            # One row may be a decode step, which is dense.
            if block.end_row > max(rule.dense_below_tokens, block.first_row + 1)
        ]
        if not candidates:
            return None
        rng = np.random.default_rng([self._seed, self._sparse, layer])
        chosen = int(rng.choice(candidates))
        count = blocks[chosen].end_row - blocks[chosen].first_row
        self._end_rows[layer] = blocks[chosen].end_row
        return ShadowRows(chosen, np.sort(rng.permutation(count)[:ROWS]))

    def add(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, first_row: int,
        chosen: ShadowRows, kept: torch.Tensor, sm_scale: float,
    ) -> None:  # fmt: skip
        """Measure one layer; q, out: [rows of the block, local heads, head_dim]; k, v: [tokens up to the block's end,
        local KV heads, head_dim]; kept: bool [list heads, pages]."""
        rows = torch.from_numpy(chosen.rows)
        if q.device.type == "cuda":
            rows = rows.pin_memory().to(q.device, non_blocking=True)
        answers = out[rows]
        if self._counts_twice is not None:
            self._counts_twice = self._counts_twice.to(q.device)  # once
            answers = torch.where(self._counts_twice[layer, :, None], answers / 2, answers)
        found = shadow_rows(q[rows], k, v, answers, rows + first_row, kept, sm_scale)
        if self._found is None:
            self._found = torch.zeros((self._plan.model.num_layers, *found.shape), device=q.device)
        self._found[layer] = found

    def end_layer(self, layer: int) -> None:
        """After the last layer: start the copy of what was found."""
        if layer != self._plan.model.num_layers - 1 or self._found is None:
            return
        if self._found.device.type != "cuda":
            self._result = self._found, None
            return
        host = torch.empty(self._found.shape, pin_memory=True)
        host.copy_(self._found, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._result = host, event

    def _collect(self) -> None:
        assert self._result is not None
        found, event = self._result
        self._result = None
        if event is not None:
            event.synchronize()  # of a step long ago
        sums = np.sum(self._gather(self._sums(found.double().numpy())), axis=0)
        STEP_COUNTERS.add_shadow(sums)

    def _sums(self, found: np.ndarray) -> np.ndarray:
        """float64 [num_layers, 5], as ``ShadowMeans.add`` takes them, over this rank's heads that are not inert."""
        counted = self._real * found[..., 3]
        parts = [(found[..., index] * counted).sum(axis=1) for index in range(3)]
        return np.stack([*parts, (self._expected() * counted).sum(axis=1), counted.sum(axis=1)], axis=1)

    def _expected(self) -> np.ndarray:
        """float64 [num_layers, local heads]: recovered mass in the profile, at the length that the block belongs to."""
        plan = self._plan
        if not plan.recovery.size:
            return np.full(self._heads.shape, np.nan)
        length = np.minimum(np.searchsorted(plan.lengths, self._end_rows), len(plan.lengths) - 1)
        layers = np.arange(len(self._heads))[:, None]
        return np.asarray(plan.recovery[layers, self._heads, length[:, None]])
