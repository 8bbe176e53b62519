# SPDX-License-Identifier: Apache-2.0
"""Proof at start that FlashInfer's kernel reads our tables as we write them: fail closed, in one sentence.

The layout of the work plan is internal to FlashInfer. So one plan that FlashInfer makes itself is decoded and compared
with ours item by item, and one sparse step of the served shape is compared with plain torch. Both compile and load what
the first long prompt would otherwise wait for.
"""

from collections import Counter

import msgspec
import numpy as np
import torch

from shplb.kernels.checked_step import CheckedStep
from shplb.kernels.choice import KernelName, PagedKernel, make_kernel
from shplb.kernels.flashinfer_sm90 import KernelUnavailableError, Sm90Prefill, plan_of_flashinfer
from shplb.kernels.top_pages import LEAST_WIDTH, top_pages
from shplb.kernels.trial import Shape, Step, TrialStep
from shplb.plan import ServingPlan
from shplb.planner import plan_work, work_plan_bytes
from shplb.policies import DEFAULT, POLICIES
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages

_TOKENS = 3001  # of the step that is compared; ends within a page and a query block
_WORST_ERROR = {torch.bfloat16: 1e-2, torch.float16: 3e-3}  # relative; measured: 3e-3 and 4e-4
_MOST_LOST_MASS = 1e-2  # of what the definition keeps; ties and float16 differ by far less
_TABLE_NAMES = ("qo_tile_indices", "qo_indptr", "kv_indptr", "qo_len", "kv_len", "head_indices")

_checked: dict[tuple[object, ...], PagedKernel] = {}


def checked_kernel(
    dtype: torch.dtype, plan: ServingPlan, max_tokens: int, device: torch.device, which: KernelName = "auto"
) -> PagedKernel:
    """The kernel for the served model, proven on this device once per process; KernelUnavailableError if it fails."""
    model = plan.model
    heads = model.num_qo_heads // plan.tp_size, model.num_kv_heads // plan.tp_size
    key = (dtype, model.head_dim, heads, plan.rule, max_tokens, device, which)
    if key not in _checked:
        kernel = make_kernel(dtype, model.head_dim, device, which)
        if isinstance(kernel, Sm90Prefill):
            check_layout(kernel)
        check_sparse_step(kernel, plan.rule, *heads)
        warm_up_widths(plan.rule, heads[0], max_tokens, device)
        _checked[key] = kernel
    return _checked[key]


def check_layout(kernel: Sm90Prefill) -> None:
    """Compare the items of a plan that FlashInfer makes with those of ours; KernelUnavailableError if they differ."""
    heads = 2
    rows = np.array([1, 60, 120, 128], dtype=np.int32)
    tokens = np.array([64, 200, 700, 1280], dtype=np.int32)
    qo_indptr = np.cumsum([0, *rows], dtype=np.int32)
    kv_indptr = np.cumsum([0, *(-(-tokens // PAGE_SIZE))], dtype=np.int32)
    theirs = plan_of_flashinfer(kernel, qo_indptr, kv_indptr, tokens, num_qo_heads=heads, page_size=PAGE_SIZE)
    buffer = np.zeros(work_plan_bytes(len(rows) * heads, kernel.num_ctas) + 16, dtype=np.uint8)
    buffer = buffer[-buffer.ctypes.data % 16 :]
    first, lens, lists, keys = (
        np.repeat(array, heads).astype(np.int32) for array in (qo_indptr[:-1], rows, kv_indptr[:-1], tokens)
    )
    head_indices = np.tile(np.arange(heads, dtype=np.int32), len(rows))
    own = plan_work(first, lens, lists, keys, head_indices, buffer, num_ctas=kernel.num_ctas, head_dim=kernel.head_dim)
    ours = buffer, own.plan_info.tolist()
    if len(theirs[1]) != 9 or theirs[1][8] != 0 or _items(*theirs, kernel.num_ctas) != _items(*ours, kernel.num_ctas):
        raise KernelUnavailableError(
            "FlashInfer lays out its plan in another way than this build expects; install flashinfer-python 0.6.12 "
            "from PyPI."
        )


def _items(buffer: np.ndarray, plan_info: list[int], num_ctas: int) -> Counter[tuple[int, ...]]:
    """Every work item of all CTAs, as (tile, row, list, rows, tokens, head)."""
    words = buffer[: len(buffer) // 4 * 4].view(np.int32)
    indptr = words[plan_info[6] // 4 :][: num_ctas + 1]
    columns = [words[offset // 4 :][: indptr[-1]].tolist() for offset in plan_info[: len(_TABLE_NAMES)]]
    return Counter(zip(*columns, strict=True))


def check_sparse_step(kernel: PagedKernel, rule: SparsityRule, num_qo_heads: int, num_kv_heads: int) -> None:
    """Run one sparse step of this shape over scattered pages and compare a few blocks with plain torch."""
    # The kernel is what is proven here; experimental policies choose pages by other code, over the same lists.
    everywhere = msgspec.structs.replace(POLICIES[DEFAULT].rule(rule), dense_below_tokens=0)
    shape = Shape(num_qo_heads, num_kv_heads, kernel.head_dim)
    trial = TrialStep(kernel, everywhere, shape, Step(0, _TOKENS), np.linspace(0.1, 0.6, num_qo_heads), seed=1)
    trial.run()
    worst = CheckedStep(trial).worst()
    if not worst.lost_mass <= _MOST_LOST_MASS:
        raise KernelUnavailableError(
            f"page selection keeps {worst.lost_mass:.1e} less estimated mass than its definition, expected at most "
            f"{_MOST_LOST_MASS:.0e}; install the pinned triton and shplb again, and clear ~/.triton/cache."
        )
    if not worst.error <= _WORST_ERROR[kernel.dtype]:
        raise KernelUnavailableError(
            f"FlashInfer's output differs from dense attention over the same pages by {worst.error:.1e}, expected "
            f"at most {_WORST_ERROR[kernel.dtype]:.0e}; install flashinfer-python 0.6.12 and shplb again, and clear "
            "FlashInfer's cache with `flashinfer clear-cache`."
        )


def warm_up_widths(rule: SparsityRule, num_qo_heads: int, max_tokens: int, device: torch.device) -> None:
    """Compile the top-k kernel for every width up to the context's; the other kernels don't depend on lengths."""
    empty_lists = torch.zeros(num_qo_heads + 1, dtype=torch.int32, device=device)
    zero, one = torch.zeros(1, dtype=torch.int32, device=device), torch.ones(1, dtype=torch.int32, device=device)
    most = max(num_pages(max_tokens), LEAST_WIDTH)
    for width in (1 << bits for bits in range(LEAST_WIDTH.bit_length() - 1, (most - 1).bit_length() + 1)):
        scores = torch.zeros((num_qo_heads, 1, width), dtype=torch.float32, device=device)
        # Types as SGLang passes them: Triton compiles per type.
        top_pages(scores, empty_lists, zero, zero, one, zero.view(1, 1), zero.long(), num_qo_heads, rule, zero)
    torch.cuda.synchronize(device)
