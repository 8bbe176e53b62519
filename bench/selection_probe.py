# SPDX-License-Identifier: Apache-2.0
"""What page lists recover and lose, layer by layer, in a dense pass over real queries, keys and values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from plugged_model import PluggedModel

from shplb.kernels.curves import block_curves, output_gram, page_partials
from shplb.kernels.scores import key_vectors, page_scores
from shplb.kernels.selection import rank_pages
from shplb.plan import ServingPlan
from shplb.sglang.metadata import QueryBlock, StepBudgets
from shplb.sparsity import PAGE_SIZE, SparsityRule


@dataclass
class Findings:
    """Sums over the rows that were measured, float64.

    recovered, error: [num_layers, num_qo_heads] per rule: attention mass on the kept pages; squared norm of what each
    head's contribution to the layer's output (after o_proj) differs from that of dense attention. norm: the same of the
    contribution itself. rows: how many.
    """

    recovered: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    norm: np.ndarray
    rows: int = 0

    def add(self, other: "Findings") -> None:
        for name in other.recovered:
            self.recovered[name] = self.recovered.get(name, 0.0) + other.recovered[name]
            self.error[name] = self.error.get(name, 0.0) + other.error[name]
        self.norm = self.norm + other.norm
        self.rows += other.rows


class SelectionProbe(PluggedModel):
    """Measures page lists of several rules side by side: equally long ones, as the plan's budgets say."""

    def measure(
        self,
        token_ids: list[int],
        plan: ServingPlan,
        rules: dict[str, SparsityRule],
        *,
        rows: int,
        seed: int,
        every: int = 1,
    ) -> Findings:
        """rows: of one query block in ``every``, drawn by ``seed``; those that keep every page are left out."""
        shape = (self.shape.num_layers, self.shape.num_qo_heads)
        zeros = {name: np.zeros(shape) for name in rules}
        self._found = Findings(zeros, {name: np.zeros(shape) for name in rules}, np.zeros(shape))
        self._rules, self._rows, self._every, self._random = rules, rows, every, np.random.default_rng(seed)
        self._step = StepBudgets(plan.budget_table(self.tokens), [0], [len(token_ids)])
        self.watch(token_ids, self._see)
        return self._found

    def _see(self, module: Any, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> None:
        gram = output_gram(module.o_proj.weight, self.shape.head_dim)
        keys = {name: key_vectors(k, rule) for name, rule in self._rules.items()}
        least = self.rule.dense_below_tokens // PAGE_SIZE
        for index, block in enumerate(self._step.blocks):
            if self._step.visible[index] <= least or index % self._every != self._every - 1:
                continue
            queries = q[block.first_row : block.end_row]
            rows = block.first_row + np.sort(self._random.permutation(len(queries))[: self._rows])
            mass, partial = self._partials(q, k, v, torch.from_numpy(rows), block, scaling)
            keep = self._step.keep[layer, :, index].tolist()
            for name, rule in self._rules.items():
                scores = page_scores(queries, keys[name], block.first_row, scaling, rule)
                order = rank_pages(scores, block.first_row, block.end_row, rule)
                recovered, error = _at(mass, partial, order, keep, gram)
                self._found.recovered[name][layer] += recovered
                self._found.error[name][layer] += error
            whole = partial.sum(dim=2)
            self._found.norm[layer] += torch.einsum("hrd,hde,hre->h", whole, gram, whole).double().cpu().numpy()
            self._found.rows += len(rows) if layer == 0 else 0

    def _partials(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, block: QueryBlock, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(mass, partial outputs) with heads in one axis."""
        groups, end = k.shape[1], block.end_row
        rows = rows.to(q.device)
        queries = q[rows].transpose(0, 1).reshape(groups, -1, len(rows), q.shape[-1])
        mass, partial = page_partials(queries, k[:end].transpose(0, 1), v[:end].transpose(0, 1), rows, scaling)
        return mass.flatten(0, 1), partial.flatten(0, 1)


def _at(
    mass: torch.Tensor, partial: torch.Tensor, order: torch.Tensor, keep: list[int], gram: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Recovered mass and error of every head at its own number of pages, [num_qo_heads] each."""
    counts = sorted(set(keep))
    recovered, error = block_curves(mass, partial, order, counts, gram)
    heads, points = np.arange(len(keep)), [counts.index(count) for count in keep]
    return recovered.cpu().numpy()[heads, points], error.cpu().numpy()[heads, points]
