# SPDX-License-Identifier: Apache-2.0
"""Proof at start that the sm90 kernel reads our tables as we write them: fail closed, in one sentence.

The layout of the work plan is internal to FlashInfer. So one plan that FlashInfer makes itself is decoded and compared
with ours item by item, and one sparse step of the served shape is compared with plain torch. Both compile and load what
the first long prompt would otherwise wait for.
"""

from collections import Counter

import msgspec
import numpy as np
import torch

from shplb.kernels.flashinfer_sm90 import KernelUnavailableError, Sm90Prefill, plan_of_flashinfer
from shplb.kernels.paged_prefill import PagedPrefill, PagedStep
from shplb.kernels.reference import attend_pages
from shplb.kernels.top_pages import LEAST_WIDTH, top_pages
from shplb.plan import ServingPlan
from shplb.planner import StepPlanner, plan_work, work_plan_bytes
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule, num_pages

_TOKENS = 3001  # of the step that is compared; ends within a page and a query block
_WORST_ERROR = {torch.bfloat16: 1e-2, torch.float16: 3e-3}  # relative; measured: 3e-3 and 4e-4
_TABLE_NAMES = ("qo_tile_indices", "qo_indptr", "kv_indptr", "qo_len", "kv_len", "head_indices")

_checked: dict[tuple[object, ...], Sm90Prefill] = {}


def checked_kernel(
    dtype: torch.dtype, plan: ServingPlan, rank: int, max_tokens: int, device: torch.device
) -> Sm90Prefill:
    """The kernel for the served model, proven on this device once per process; KernelUnavailableError if it fails."""
    model = plan.model
    heads = model.num_qo_heads // plan.tp_size, model.num_kv_heads // plan.tp_size
    key = (dtype, model.head_dim, heads, rank, device)
    if key not in _checked:
        kernel = Sm90Prefill(dtype, model.head_dim, device)
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


def check_sparse_step(kernel: Sm90Prefill, rule: SparsityRule, num_qo_heads: int, num_kv_heads: int) -> None:
    """Run one sparse step of this shape over scattered pages and compare a few blocks with plain torch."""
    device, head_dim = kernel.device, kernel.head_dim
    generator = torch.Generator(device=device).manual_seed(1)
    pages = num_pages(_TOKENS)
    order = torch.randperm(pages, generator=generator, device=device)
    table = (order[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=device)).view(1, -1).int()

    def random(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, head_dim, generator=generator, device=device, dtype=kernel.dtype)

    q = random(_TOKENS, num_qo_heads)
    k_pool, v_pool = random(pages * PAGE_SIZE, num_kv_heads), random(pages * PAGE_SIZE, num_kv_heads)
    prefill = _small_prefill(kernel, rule, num_qo_heads, num_kv_heads, pages)
    zeros = torch.zeros(1, dtype=torch.int64, device=device)
    step = prefill.begin_step([0], [_TOKENS], table, zeros, zeros + _TOKENS, "sparse")
    assert step is not None
    out, seen = torch.full_like(q, float("nan")), []
    prefill.run(step, 0, q, k_pool, v_pool, head_dim**-0.5, out, lambda kept, _: seen.append(kept))
    slots = table[0, :_TOKENS].long()
    error = _worst_error(step, seen[0], q, k_pool[slots], v_pool[slots], out)
    if not error <= _WORST_ERROR[kernel.dtype]:
        raise KernelUnavailableError(
            f"the sm90 kernel's output differs from dense attention over the same pages by {error:.1e}, expected at "
            f"most {_WORST_ERROR[kernel.dtype]:.0e}; install flashinfer-python 0.6.12 and shplb again, and clear "
            "FlashInfer's cache with `flashinfer clear-cache`."
        )


def _small_prefill(
    kernel: Sm90Prefill, rule: SparsityRule, num_qo_heads: int, num_kv_heads: int, pages: int
) -> PagedPrefill:
    shares = np.linspace(0.1, 0.6, num_qo_heads)[None, :, None]
    everywhere = msgspec.structs.replace(rule, dense_below_tokens=0)
    keep = BudgetTable(shares, np.array([PAGE_SIZE]), everywhere, pages * PAGE_SIZE).pages
    planner = StepPlanner(
        num_kv_heads=num_kv_heads, head_dim=kernel.head_dim, keep_pages=keep,
        slot_groups=np.arange(num_kv_heads, dtype=np.int32).reshape(1, 1, -1), rank=0, sink_pages=rule.sink_pages,
        local_pages=rule.local_pages, num_ctas=kernel.num_ctas,
    )  # fmt: skip
    return PagedPrefill(
        planner, kernel, rule, num_list_heads=num_qo_heads, group_size=num_qo_heads // num_kv_heads,
        device=kernel.device, usual_new_tokens=_TOKENS,
    )  # fmt: skip


def _worst_error(
    step: PagedStep, pages: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
) -> float:
    """Largest relative error over the heads of the first, a middle and the last block; NaN if the output holds any."""
    plan, group_size = step.plan, q.shape[1] // k.shape[1]
    indptr = step.list_indptr(0).tolist()
    first_rows, lens = (
        step.blocks(offset).tolist() for offset in (plan.block_first_row_offset, plan.block_qo_len_offset)
    )
    if not torch.isfinite(out).all():
        return float("nan")
    worst = 0.0
    for block in {0, plan.num_blocks // 2, plan.num_blocks - 1}:
        rows = slice(first_rows[block], first_rows[block] + lens[block])
        for head in range(q.shape[1]):
            at = head * plan.num_blocks + block
            kept = pages[indptr[at] : indptr[at + 1]].long()
            group = head // group_size
            expected = attend_pages(
                q[rows, head].float(), k[:, group].float(), v[:, group].float(), kept, rows.start, q.shape[2] ** -0.5
            )
            worst = max(worst, ((out[rows, head].float() - expected).norm() / expected.norm()).item())
    return worst


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
