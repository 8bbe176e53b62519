# SPDX-License-Identifier: Apache-2.0
"""Output of heads that two ranks hold: whole on the rank that computed a block, nothing on the other."""

import torch
import triton
import triton.language as tl

_ROWS = 32


@triton.jit
def _weigh_copies_kernel(
    out_ptr, row_stride, head_stride, copied_ptr, owned_ptr, qo_indptr_ptr, qo_len_ptr,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    list_head = head // HEADS
    if tl.load(copied_ptr + list_head) == 0:
        return
    first = tl.load(owned_ptr + 2 * list_head)
    end = tl.load(owned_ptr + 2 * list_head + 1)
    mine = (block >= first) & (block < end)
    start, count = tl.load(qo_indptr_ptr + block), tl.load(qo_len_ptr + block)
    dim = tl.arange(0, HEAD_DIM)
    for offset in range(0, count, ROWS):
        row = offset + tl.arange(0, ROWS)
        at = (start + row).to(tl.int64)[:, None] * row_stride + head * head_stride + dim[None, :]
        real = (row < count)[:, None]
        # What was never written may hold anything, NaN too.
        value = tl.load(out_ptr + at, mask=real & mine, other=0.0)
        tl.store(out_ptr + at, value * 2, mask=real)


def weigh_copies(
    out: torch.Tensor,
    copied: torch.Tensor,
    owned: torch.Tensor,
    qo_indptr: torch.Tensor,
    qo_len: torch.Tensor,
) -> None:
    """Doubles, in place, the blocks of copied heads that this rank computed, and writes 0 into the others.

    The o_proj columns of copied heads are halved on both ranks, so this makes the ranks' sum right, exactly.

    out: ``[num_rows, num_qo_heads, head_dim]``; copied: uint8 ``[num_list_heads]``; owned: int32
    ``[num_list_heads, 2]``, blocks [first, end) of every list head that this rank computed; qo_indptr, qo_len: int32
    ``[num_blocks]``, rows of every block.
    """
    num_heads, head_dim = out.shape[1:]
    _weigh_copies_kernel[(len(qo_len), num_heads)](
        out, out.stride(0), out.stride(1), copied, owned, qo_indptr, qo_len,
        HEADS=num_heads // len(copied), HEAD_DIM=head_dim, ROWS=_ROWS,
    )  # fmt: skip
