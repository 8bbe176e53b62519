# SPDX-License-Identifier: Apache-2.0
"""Recovery and output error on a GPU, from what every step of the ranking adds to a head's output.

A head that keeps the pages of the first steps outputs the ratio of two sums over these steps, and the last step makes
it dense attention, so the whole curve is one pass over the steps. Their maxima differ by band and are made one first.
Products with the gram matrix are made of bfloat16 halves, 16 bits in all: four times as fast as in float32, and finer
than the weights, which are rounded to the type of the values.
"""

import torch
import triton
import triton.language as tl

from shplb.kernels.band_attention import StepSums
from shplb.kernels.rank_bands import BAND


@triton.jit
def _add_step(
    output, weight, outputs_ptr, weights_ptr, largest_ptr, biggest, step,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    row, dim = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    factor = tl.exp2(tl.load(largest_ptr + step // BAND * ROWS + row) - biggest)
    part = tl.load(outputs_ptr + (step * ROWS + row)[:, None] * HEAD_DIM + dim[None, :])
    return output + part * factor[:, None], weight + tl.load(weights_ptr + step * ROWS + row) * factor


@triton.jit(do_not_specialize=["num_blocks"])
def _step_curves_kernel(
    outputs_ptr, weights_ptr, largest_ptr, gram_ptr, counts_ptr, curves_ptr, num_blocks,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, STEPS: tl.constexpr, BANDS: tl.constexpr, BAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    line = head.to(tl.int64) * num_blocks + block
    row, dim = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    real = row < tl.load(counts_ptr + block)
    outputs_ptr += line * STEPS * ROWS * HEAD_DIM
    weights_ptr += line * STEPS * ROWS
    largest_ptr += line * BANDS * ROWS
    biggest = tl.load(largest_ptr + row)
    for band in tl.static_range(1, BANDS):
        biggest = tl.maximum(biggest, tl.load(largest_ptr + band * ROWS + row))
    nothing, none = tl.zeros((ROWS, HEAD_DIM), tl.float32), tl.zeros((ROWS,), tl.float32)
    output, weight = nothing, none
    for step in range(STEPS):
        output, weight = _add_step(
            output, weight, outputs_ptr, weights_ptr, largest_ptr, biggest, step, ROWS, HEAD_DIM, BAND
        )
    whole = tl.where(real, weight, 1.0)
    dense = output / whole[:, None]
    gram = tl.load(gram_ptr + head * HEAD_DIM * HEAD_DIM + dim[:, None] * HEAD_DIM + dim[None, :])
    output, weight = nothing, none
    for step in range(STEPS):
        output, weight = _add_step(
            output, weight, outputs_ptr, weights_ptr, largest_ptr, biggest, step, ROWS, HEAD_DIM, BAND
        )
        delta = tl.where(real[:, None], output / tl.maximum(weight, 1e-30)[:, None] - dense, 0.0)
        square = tl.sum(tl.sum(tl.dot(delta, gram, input_precision=PRECISION) * delta, axis=1), axis=0)
        at = curves_ptr + line * STEPS + step
        tl.store(at, tl.sum(tl.where(real, weight / whole, 0.0), axis=0))
        tl.store(at + tl.num_programs(1).to(tl.int64) * num_blocks * STEPS, tl.maximum(square, 0.0))


def step_curves(sums: StepSums, gram: torch.Tensor, row_counts: torch.Tensor) -> torch.Tensor:
    """float32 ``[2, num_qo_heads, num_blocks, num_steps]``: recovery and output error, sums over a block's rows, when
    the pages of a step and of all steps before it are kept.

    sums: from :func:`band_attention.band_attention`; gram: float32 ``[num_qo_heads, head_dim, head_dim]``, see
    ``curves.output_gram``; row_counts: int32 ``[num_blocks]``, how many rows of a block are to count.
    """
    heads, num_blocks, steps, rows, head_dim = sums.outputs.shape
    curves = torch.empty((2, heads, num_blocks, steps), dtype=torch.float32, device=gram.device)
    _step_curves_kernel[(num_blocks, heads)](
        *sums, gram, row_counts, curves, num_blocks,
        ROWS=rows, HEAD_DIM=head_dim, STEPS=steps, BANDS=sums.largest.shape[2], BAND=BAND,
        PRECISION="bf16x3" if gram.is_cuda else "ieee", num_warps=4, num_stages=2,
    )  # fmt: skip
    return curves
