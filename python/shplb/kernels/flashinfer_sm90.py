# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's sm90 paged prefill kernel under our own work plan; the only module that touches FlashInfer.

``BatchPrefillWithPagedKVCacheWrapper.plan()`` takes 16 to 18 ms of CPU for 4096 page lists. Below it, the kernel reads
its schedule as eight int32 arrays (``shplb.plan_work``), in which every work item names its own query head, rows and
page list: head-adaptive sparsity needs no copy of q or out. This is no public interface, hence the exact version, the
checks in :meth:`Sm90Prefill.run` (the kernel makes none) and the self-check at start.
"""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock

from shplb.errors import UserError
from shplb.sparsity import PAGE_SIZE

if TYPE_CHECKING:
    from shplb.kernels.paged_step import PagedStep

FLASHINFER_VERSION = "0.6.12"
HEAD_DIMS = (64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)

_CAUSAL, _NHD, _NO_WINDOW = 1, 0, -1


class KernelUnavailableError(UserError):
    """The sm90 kernel can't be used here; the message says why and what to do."""


def is_sm90(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def jit_spec(dtype: torch.dtype, head_dim: int) -> Any:
    """FlashInfer's build recipe of the module; KernelUnavailableError if version, dtype or head_dim don't fit."""
    try:
        found = version("flashinfer-python")
    except PackageNotFoundError:
        found = "none"
    if found != FLASHINFER_VERSION:
        raise KernelUnavailableError(
            f"FlashInfer {found} is installed, the work plan is laid out for {FLASHINFER_VERSION}; install that one."
        )
    if dtype not in DTYPES or head_dim not in HEAD_DIMS:
        raise KernelUnavailableError(
            f"the sm90 kernel has no variant for {dtype} and head_dim {head_dim}; serve in bfloat16 or float16, with "
            f"head_dim {', '.join(map(str, HEAD_DIMS))}."
        )
    from flashinfer.jit.attention.modules import gen_batch_prefill_module

    # (backend, q, kv, out and index dtype, head dims, positional encoding, sliding window, soft cap, fp16 products)
    return gen_batch_prefill_module("fa3", dtype, dtype, dtype, torch.int32, head_dim, head_dim, 0, False, False, False)


def is_built(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the compiled module is in FlashInfer's cache."""
    return bool(jit_spec(dtype, head_dim).is_compiled)


def build(dtype: torch.dtype, head_dim: int) -> Path:
    """Compile the module into FlashInfer's cache (about 90 s, once per machine); KernelUnavailableError if it fails."""
    spec = jit_spec(dtype, head_dim)
    with FileLock(spec.lock_path):
        return _built_library(spec)


def _load(dtype: torch.dtype, head_dim: int) -> Any:
    """The module, compiled first where needed; a cached one needs neither ninja nor nvcc."""
    spec = jit_spec(dtype, head_dim)
    # FlashInfer's own lock: another process may be replacing the library.
    with FileLock(spec.lock_path):
        library = _built_library(spec)
        try:
            return spec.load(library)
        except (OSError, RuntimeError) as error:
            raise KernelUnavailableError(
                f"FlashInfer's compiled kernel {library} can't be loaded ({str(error).strip().partition(chr(10))[0]}); "
                "clear its cache with `flashinfer clear-cache` and start again."
            ) from None


def _built_library(spec: Any) -> Path:
    """Under the spec's lock."""
    if not spec.is_compiled:
        _build(spec)
    return Path(spec.get_library_path())


def _build(spec: Any) -> None:
    try:
        spec.build(verbose=False, need_lock=False)
    except Exception as error:  # of ninja, nvcc or a missing CUDA_HOME, each with a class of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # The last line only says that ninja stopped.
        reason = next((line for line in lines if re.search(r"error:|fatal|cannot find", line)), lines[-1]).strip()
        raise KernelUnavailableError(
            f"FlashInfer's sm90 kernel can't be compiled ({reason}); install the CUDA toolkit (nvcc), set CUDA_HOME "
            "and run `shplb doctor --prebuild`."
        ) from None


class Sm90Prefill:
    """The kernel for one dtype and head_dim; built once per rank, run once per layer."""

    def __init__(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> None:
        """Load the module, compiling it first where needed; KernelUnavailableError if that can't be done."""
        if not is_sm90(device):
            raise KernelUnavailableError(f"{device} is no GPU of compute capability 9.0 (H100, H200).")
        self._paged_run = _load(dtype, head_dim).paged_run
        self.dtype, self.head_dim, self.device = dtype, head_dim, device
        self.num_ctas = int(torch.cuda.get_device_properties(device).multi_processor_count)
        # Passed through, never read: the schedule holds all lengths.
        self._unused = torch.zeros(1, dtype=torch.int32, device=device)

    def run_layer(
        self,
        step: "PagedStep",
        layer: int,
        pages: torch.Tensor,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        sm_scale: float,
        out: torch.Tensor,
    ) -> None:
        """As ``PagedPrefill.attend``."""
        self.run(q, paged(k_pool), paged(v_pool), pages, *step.work(layer), out, sm_scale)

    def run(
        self,
        q: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        page_indices: torch.Tensor,
        workspace: torch.Tensor,
        plan_info: list[int],
        out: torch.Tensor,
        sm_scale: float,
    ) -> None:
        """Causal attention of every work item over its page list, into ``out``.

        q, out: ``[num_rows, num_qo_heads, head_dim]``; k_pages, v_pages: ``[pool_pages, page_size, num_kv_heads,
        head_dim]`` of one stride; page_indices: int32, the lists; workspace: uint8, a copy of the planner's buffer;
        plan_info: the nine numbers of this layer.
        Rows without a work item are not written. ValueError for what the kernel would silently misread.
        """
        self._check_tensors(q, k_pages, v_pages, out)
        self._check_tables(page_indices, workspace, plan_info)
        self._paged_run(
            workspace, workspace, plan_info, q, k_pages, v_pages, self._unused, self._unused, page_indices,
            self._unused, out, None, _CAUSAL, _NHD, _NO_WINDOW, False, None, None, None, None, 0.0, sm_scale, 1.0, 0,
        )  # fmt: skip

    def _check_tensors(self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, out: torch.Tensor) -> None:
        for name, tensor, dims in (("q", q, 3), ("k_pages", k_pages, 4), ("v_pages", v_pages, 4), ("out", out, 3)):
            if tensor.dtype != self.dtype or tensor.device != self.device:
                raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, expected {self.dtype} on {self.device}")
            strides = tensor.stride()
            if tensor.dim() != dims or tensor.shape[-1] != self.head_dim or strides[-1] != 1:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, expected {dims} dense axes of {self.head_dim}"
                )
            if tensor.data_ptr() % 16 or any(stride % 8 for stride in strides[:-1]):
                raise ValueError(f"{name} is not aligned to 16 bytes in every row")
        if out.shape != q.shape or k_pages.shape != v_pages.shape or k_pages.stride() != v_pages.stride():
            raise ValueError("q and out, and k_pages and v_pages, must have one shape, the latter one stride")
        if q.shape[1] % k_pages.shape[2]:
            raise ValueError(f"{q.shape[1]} query heads can't share {k_pages.shape[2]} KV heads evenly")

    @staticmethod
    def _check_tables(page_indices: torch.Tensor, workspace: torch.Tensor, plan_info: list[int]) -> None:
        if page_indices.dtype != torch.int32 or page_indices.stride() != (1,) or workspace.dtype != torch.uint8:
            raise ValueError("page_indices must be dense int32 and workspace uint8")
        if len(plan_info) != 9 or max(plan_info[:8]) >= workspace.numel() or workspace.data_ptr() % 16:
            raise ValueError("plan_info does not belong to this workspace")


def paged(pool: torch.Tensor) -> torch.Tensor:
    """``[pool_tokens, heads, dim]`` as ``[pages, 64, heads, dim]``; a last page that is not whole is left out."""
    whole = pool.shape[0] // PAGE_SIZE
    return pool[: whole * PAGE_SIZE].view(whole, PAGE_SIZE, *pool.shape[1:])


def plan_of_flashinfer(
    kernel: Sm90Prefill,
    qo_indptr: np.ndarray,
    kv_indptr: np.ndarray,
    kv_lens: np.ndarray,
    *,
    num_qo_heads: int,
    page_size: int,
) -> tuple[np.ndarray, list[int]]:
    """The tables that FlashInfer's own planner writes for these requests, and its plan_info.

    qo_indptr, kv_indptr: int32 ``[num_requests + 1]``, rows and pages; kv_lens: int32 ``[num_requests]``, tokens.
    Returns (uint8 workspace, nine int64).
    """
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    workspace = torch.empty(1 << 20, dtype=torch.uint8, device=kernel.device)
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa3")
    wrapper.plan(
        torch.from_numpy(qo_indptr), torch.from_numpy(kv_indptr),
        torch.zeros(int(kv_indptr[-1]), dtype=torch.int32), torch.from_numpy((kv_lens - 1) % page_size + 1),
        num_qo_heads, num_qo_heads, kernel.head_dim, page_size, causal=True,
        q_data_type=kernel.dtype, kv_data_type=kernel.dtype,
    )  # fmt: skip
    return wrapper._int_workspace_buffer.cpu().numpy(), [int(value) for value in wrapper._plan_info]
