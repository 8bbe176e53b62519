# SPDX-License-Identifier: Apache-2.0
"""ServingPlan: budgets and head placement for one model at one tensor-parallel size, as one validated file."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from shplb.budget import Objective, Scope
from shplb.container import (
    FileFormatError,
    Migration,
    content_hash,
    load_container,
    save_container,
    take_arrays,
    take_facts,
)
from shplb.model import Fingerprint, ModelShape
from shplb.replicas import divide_replicas
from shplb.sparsity import MOST_TOKENS, BudgetTable, SparsityRule, query_block_size

KIND = "ServingPlan"
FORMAT_VERSION = 3


def _add_replicas(tensors: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Version 1 knew none."""
    facts["replicas"] = 0


def _add_tail(tensors: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Version 2 knew none; an older shplb would serve a plan with one without it."""
    if isinstance(rule := facts.get("rule"), dict):
        rule["dense_tail_tokens"] = 0


#: Version of an older file -> what makes the next version of it; see docs/files.md.
MIGRATIONS: dict[int, Migration] = {1: _add_replicas, 2: _add_tail}
_HEADS = ("num_layers", "num_kv_heads")
ARRAYS = {
    "lengths": ("int64", ("num_lengths",)),
    "budgets": ("float64", ("num_layers", "num_qo_heads", "num_lengths")),
    "physical_to_logical": ("int32", ("num_layers", "num_placed")),
    "loads": ("int64", _HEADS),
}
OPTIONAL_ARRAYS = {"recovery": ARRAYS["budgets"]}

_MOST_PAGES = 1 << 16


class PlanFacts(msgspec.Struct, frozen=True):
    """What a plan file's metadata holds: everything but arrays.

    balance_aware: budgets and placement were solved together: ``density`` is what the two solved apart would have at
    the same work of the slowest ranks. Files from before this field have it false.
    replicas: slots that every rank has beyond num_kv_heads / tp_size. A group in two slots, on different ranks, is a
    replica: the two divide its work at every step.
    """

    model: ModelShape
    fingerprint: Fingerprint
    tp_size: int
    rule: SparsityRule
    objective: str
    scope: str
    density: float
    profile_hash: str
    versions: dict[str, str]
    balance_aware: bool = False
    replicas: int = 0


class ServingPlan(PlanFacts, frozen=True, kw_only=True):
    """What every rank needs to serve.

    Attributes:
        lengths: int64 [num_lengths], ascending tokens.
        budgets: float64 [num_layers, num_qo_heads, num_lengths], share of visible pages kept, in (0, 1];
            heads in the model's own (logical) order.
        physical_to_logical: int32 [num_layers, tp_size * num_slots]; KV group in slot p of layer l, where rank r owns
            the slots [r*n, (r+1)*n), n = num_slots. Named as in EPLB.
        loads: int64 [num_layers, num_kv_heads], predicted load of each logical KV group at the reference step.
        recovery: float64, shape of budgets: attention mass that each head recovered under its budget when the model was
            profiled, in [0, 1]; empty where that is not known. Serving compares with it what it recovers.
    """

    lengths: np.ndarray
    budgets: np.ndarray
    physical_to_logical: np.ndarray
    loads: np.ndarray
    recovery: np.ndarray = msgspec.field(default_factory=lambda: np.empty(0))

    @property
    def num_slots(self) -> int:
        """KV groups that every rank holds."""
        return self.model.num_kv_heads // self.tp_size + self.replicas

    @property
    def served_heads(self) -> dict[str, int]:
        """Config fields of the model that SGLang must build: heads of all ranks' slots, copies counted in."""
        slots = self.num_slots * self.tp_size
        return {
            "num_key_value_heads": slots,
            "num_attention_heads": slots * self.model.group_size,
            # Readers derive it from hidden size and heads otherwise, which no longer fit together.
            "head_dim": self.model.head_dim,
        }

    @property
    def copied(self) -> np.ndarray:
        """bool, shape of ``physical_to_logical``: slots whose group another rank holds, too."""
        slots = self.physical_to_logical
        return np.asarray([np.bincount(row, minlength=self.model.num_kv_heads)[row] == 2 for row in slots])

    @property
    def permutes(self) -> bool:
        """True when some layer's KV groups are not in the model's own order, or some are copied."""
        return self.replicas > 0 or bool(np.any(self.physical_to_logical != self.own_order))

    @property
    def own_order(self) -> np.ndarray:
        """``physical_to_logical`` of stock SGLang: the model's own order in every layer."""
        return np.tile(np.arange(self.model.num_kv_heads, dtype=np.int32), (self.model.num_layers, 1))

    def budget_table(self, max_tokens: int) -> BudgetTable:
        return BudgetTable(self.budgets, self.lengths, self.rule, max_tokens)

    def local_kv_heads(self, rank: int) -> np.ndarray:
        """int32 [num_layers, num_slots]: logical KV groups that ``rank`` holds, slot by slot."""
        count = self.num_slots
        return self.physical_to_logical[:, rank * count : (rank + 1) * count]

    def local_qo_heads(self, rank: int) -> np.ndarray:
        """int32 [num_layers, num_slots * group_size]: logical query heads of ``rank`` in its own order."""
        return expand_groups(self.local_kv_heads(rank), self.model.group_size)

    def copied_qo_heads(self, rank: int) -> np.ndarray:
        """bool [num_layers, num_slots * group_size]: query heads of ``rank`` that another rank holds, too."""
        slots = self.copied[:, rank * self.num_slots : (rank + 1) * self.num_slots]
        return np.repeat(slots, self.model.group_size, axis=1)

    def rank_loads(self, loads: np.ndarray, *, contiguous: bool = False) -> np.ndarray:
        """[num_layers, tp_size] from ``loads`` [num_layers, num_kv_heads] of logical groups, in the same unit:
        as placed, with replicas (of int64 loads) divided best, or as stock SGLang would shard."""
        if self.replicas and not contiguous:
            return divide_replicas(loads, self.slot_groups)
        return rank_sums(loads, self.own_order if contiguous else self.physical_to_logical, self.tp_size)

    @property
    def slot_groups(self) -> np.ndarray:
        """int32 [num_layers, tp_size, num_slots]: ``physical_to_logical`` as the step planner takes it."""
        return np.ascontiguousarray(self.physical_to_logical.reshape(self.model.num_layers, self.tp_size, -1))

    def save(self, path: Path) -> str:
        """Write atomically; returns the content hash."""
        return save_container(path, KIND, FORMAT_VERSION, *self._parts())

    @property
    def hash(self) -> str:
        """sha256 (hex) of everything in the plan; equal on all ranks or they must not serve together."""
        tensors, facts = self._parts()
        return content_hash(tensors, {**facts, "kind": KIND, "format_version": FORMAT_VERSION})

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        facts = msgspec.to_builtins(self, builtin_types=(np.ndarray,))
        tensors = {name: facts.pop(name) for name in (*ARRAYS, *OPTIONAL_ARRAYS)}
        return {name: tensor for name, tensor in tensors.items() if name in ARRAYS or tensor.size}, facts

    @classmethod
    def load(cls, path: Path) -> "ServingPlan":
        """Read and validate; FileFormatError in one sentence when the file can't be used."""
        tensors, fields = load_container(path, KIND, FORMAT_VERSION, MIGRATIONS)
        facts = take_facts(path, KIND, fields, PlanFacts)
        placed = facts.model.num_kv_heads + facts.tp_size * facts.replicas
        extents = {**facts.model.head_counts, "num_placed": placed}
        arrays = take_arrays(path, tensors, ARRAYS, extents, OPTIONAL_ARRAYS)
        plan = cls(**{name: getattr(facts, name) for name in facts.__struct_fields__}, **arrays)
        plan.validate(path)
        return plan

    def validate(self, path: Path) -> None:
        """Check value ranges; FileFormatError naming what is wrong."""
        checks = {
            "lengths": len(self.lengths) > 0
            and 0 < self.lengths[0] <= self.lengths[-1] <= MOST_TOKENS
            and bool(np.all(np.diff(self.lengths) > 0)),
            "density": 0.0 < self.density <= 1.0,
            "objective": self.objective in get_args(Objective),
            "scope": self.scope in get_args(Scope),
            "rule": self.rule.query_block == query_block_size(self.model.head_dim)
            and max(self.rule.sink_pages, self.rule.local_pages, self.rule.floor_pages) <= _MOST_PAGES
            and max(self.rule.dense_below_tokens, self.rule.dense_tail_tokens) <= MOST_TOKENS,
            "budgets": bool(np.all((self.budgets > 0) & (self.budgets <= 1))),
            "replicas": self.replicas >= 0,
            "physical_to_logical": self._slots_are_good(),
            "loads": bool(np.all(self.loads >= 0)),
            "recovery": bool(np.all((self.recovery >= 0) & (self.recovery <= 1))),
            "balance_aware": not self.balance_aware or self.objective == "min_error",
            "tp_size": self.tp_size > 0 and self.model.num_kv_heads % self.tp_size == 0,
        }
        for name, good in checks.items():
            if not good:
                raise FileFormatError(f"{path}: '{name}' holds values out of range; make the plan again.")

    def _slots_are_good(self) -> bool:
        """Every KV group in one slot, or in two on different ranks."""
        if not self.replicas:
            return bool(np.all(np.sort(self.physical_to_logical, axis=1) == np.arange(self.model.num_kv_heads)))
        try:
            divide_replicas(np.zeros_like(self.loads), self.slot_groups)
        except ValueError:
            return False
        return True


def rank_sums(values: np.ndarray, order: np.ndarray, num_ranks: int) -> np.ndarray:
    """[num_layers, num_ranks]: ``values`` [num_layers, num_kv_heads] of logical groups, summed over the slots that each
    rank has in ``order`` (as ``physical_to_logical``)."""
    slots = np.take_along_axis(values, order, axis=1)
    return np.asarray(slots.reshape(len(slots), num_ranks, -1).sum(axis=2))


def expand_groups(groups: np.ndarray, group_size: int) -> np.ndarray:
    """Query heads of KV groups: ``[..., n]`` -> ``[..., n * group_size]``, group by group."""
    heads = groups[..., None] * group_size + np.arange(group_size, dtype=groups.dtype)
    return np.asarray(heads.reshape(*groups.shape[:-1], -1))
