# SPDX-License-Identifier: Apache-2.0
"""How long lists came out that no one planned; read from the GPU when it is done, never waited for."""

from collections import deque

import torch

from shplb.kernels.paged_step import PagedStep
from shplb.sglang.metrics import STEP_COUNTERS


class DealtCounts:
    """Corrects the counters of steps whose lists are as long as scores say."""

    def __init__(self, query_block: int) -> None:
        self._rows = query_block
        self._kept: torch.Tensor | None = None
        self._waiting: deque[tuple[torch.Tensor, torch.cuda.Event | None, int]] = deque()

    def add(self, step: PagedStep, layer: int) -> None:
        """Add a layer's lists; after the last one, start the copy of their sum."""
        kept = step.list_indptr(layer)[-1].long()
        self._kept = kept if layer == 0 or self._kept is None else self._kept + kept
        if layer < len(step.plan_info) - 1:
            return
        planned = int(step.plan.list_pages.sum())
        if self._kept.device.type != "cuda":
            self._waiting.append((self._kept, None, planned))
            return
        host = torch.empty((), dtype=torch.int64, pin_memory=True)
        host.copy_(self._kept, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((host, event, planned))

    def collect(self) -> None:
        """Count the steps that are done."""
        while self._waiting and (self._waiting[0][1] is None or self._waiting[0][1].query()):
            kept, _, planned = self._waiting.popleft()
            STEP_COUNTERS.add_unplanned((int(kept) - planned) * self._rows)
