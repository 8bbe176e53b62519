# SPDX-License-Identifier: Apache-2.0
"""Which of FlashInfer's kernels runs the page lists on a GPU."""

from typing import Literal

import torch

from shplb.kernels.flashinfer_public import PublicPrefill
from shplb.kernels.flashinfer_sm90 import Sm90Prefill, is_sm90

PagedKernel = Sm90Prefill | PublicPrefill
KernelName = Literal["auto", "sm90", "public"]


def make_kernel(dtype: torch.dtype, head_dim: int, device: torch.device, which: KernelName = "auto") -> PagedKernel:
    """The sm90 kernel where there is one, else FlashInfer's public wrapper; KernelUnavailableError if neither fits."""
    if which == "sm90" or (which == "auto" and is_sm90(device)):
        return Sm90Prefill(dtype, head_dim, device)
    return PublicPrefill(dtype, head_dim, device)
