# SPDX-License-Identifier: Apache-2.0
"""Tables that the CPU writes and the GPU reads, step after step, without a wait."""

import numpy as np
import torch

_SLOTS = 3


class StagingRing:
    """A device buffer, and pinned host buffers in turn from which it is filled by one asynchronous copy per step.

    A host buffer is handed out again only after the copy from it is done, which is so unless the CPU runs more than
    two steps ahead. The device buffer may be overwritten at once: copies and kernels follow each other on one stream.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._device = device
        self._turn = 0
        self._allocate(num_bytes)

    def _allocate(self, num_bytes: int) -> None:
        pinned = self._device.type == "cuda"
        self._host = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(_SLOTS)]
        self._copied: list[torch.cuda.Event | None] = [None] * _SLOTS
        self.device_buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def begin(self, num_bytes: int) -> np.ndarray:
        """A host buffer of at least ``num_bytes`` to fill, uint8; the next :meth:`upload` takes it."""
        if num_bytes > len(self._host[0]):
            # Rare: a batch larger than the server was sized for. Copies under way still read the old buffers.
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            self._allocate(num_bytes)
        self._turn = (self._turn + 1) % _SLOTS
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        return np.asarray(self._host[self._turn].numpy())

    def upload(self, num_bytes: int) -> torch.Tensor:
        """Start the copy of the first ``num_bytes``; returns the device buffer, uint8."""
        host = self._host[self._turn][:num_bytes]
        self.device_buffer[:num_bytes].copy_(host, non_blocking=True)
        if self._device.type == "cuda":
            event = self._copied[self._turn] or torch.cuda.Event()
            event.record()
            self._copied[self._turn] = event
        return self.device_buffer
