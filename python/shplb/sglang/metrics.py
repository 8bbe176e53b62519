# SPDX-License-Identifier: Apache-2.0
"""Counters of one rank, shown in ``/server_info``. A bench reads them to be sure that the sparse path ran."""

from typing import Any

import numpy as np


class StepCounters:
    """Sums over prefill steps; the work unit is one (query row, key page) pair per query head."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.sparse_steps = 0
        self.dense_steps = 0
        self.computed = 0
        self.causal = 0
        self.rank_loads = np.zeros(1, dtype=np.int64)
        self.contiguous_rank_loads = np.zeros(1, dtype=np.int64)

    def start(self, tp_size: int, **facts: Any) -> None:
        """Reset for a server of ``tp_size`` ranks; ``facts`` (builtins) are shown as they are."""
        self.__init__()  # type: ignore[misc]
        self.facts = facts
        self.rank_loads = np.zeros(tp_size, dtype=np.int64)
        self.contiguous_rank_loads = np.zeros(tp_size, dtype=np.int64)

    def add_step(
        self,
        *,
        dense: bool,
        computed: int,
        causal: int,
        rank_loads: np.ndarray,
        contiguous_rank_loads: np.ndarray,
    ) -> None:
        """Count one prefill step; loads are int64 [tp_size], as placed and as stock SGLang would shard."""
        self.dense_steps += dense
        self.sparse_steps += not dense
        self.computed += computed
        self.causal += causal
        self.rank_loads += rank_loads
        self.contiguous_rank_loads += contiguous_rank_loads

    def report(self) -> dict[str, Any]:
        return {
            **self.facts,
            "sparse_steps": self.sparse_steps,
            "dense_steps": self.dense_steps,
            "computed_row_pages": self.computed,
            "causal_row_pages": self.causal,
            "density": self.computed / self.causal if self.causal else None,
            "rank_loads": self.rank_loads.tolist(),
            "contiguous_rank_loads": self.contiguous_rank_loads.tolist(),
        }


#: One server per process, as everywhere in SGLang.
STEP_COUNTERS = StepCounters()
