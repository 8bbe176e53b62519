# SPDX-License-Identifier: Apache-2.0
"""Times the kernels of sparse and dense prefill on this GPU, for the cost model."""

from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
import torch

from shplb.kernels.choice import PagedKernel, make_kernel
from shplb.kernels.dense_baselines import STOCK, UnavailableError
from shplb.kernels.flashinfer_sm90 import Sm90Prefill
from shplb.kernels.trial import Shape, Step, TrialStep
from shplb.rates import GpuRates, Sample, fields_of, fit
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages, query_block_size

#: From where sparse attention might begin to pay to where it is there for; and few new tokens on a long context.
STEPS = (
    Step(0, 1024), Step(0, 2048), Step(0, 3072), Step(0, 4096), Step(0, 6144), Step(0, 8192), Step(0, 16384),
    Step(0, 32768), Step(24576, 8192), Step(57344, 8192), Step(122880, 8192), Step(122880, 2048), Step(122880, 512),
)  # fmt: skip
DENSITIES = (0.1, 0.4)
_L2_BYTES = 256 << 20  # more than any cache holds
_COMPANY = 6  # matrix products, about 2.5 ms
_COMPANY_ROWS, _COMPANY_WIDTH = 8192, 4096
_KV_TILE = {64: 96, 128: 96, 256: 32}  # tokens, as the core has it


def time_steps(kernel: PagedKernel, shape: Shape, base: str, max_tokens: int) -> Iterator[Sample]:
    """One sample per step of at most ``max_tokens`` and density; dense ones by the backend SGLang calls ``base``.

    Raises:
        dense_baselines.UnavailableError: the library of ``base`` is not on this machine.
    """
    rule = SparsityRule(query_block=query_block_size(shape.head_dim), dense_below_tokens=0)
    for step in STEPS:
        if step.prefix + step.new > max_tokens:
            continue
        dense_ns = None
        for density in DENSITIES:
            shares = density * np.linspace(0.2, 1.8, shape.num_qo_heads)
            trial = TrialStep(kernel, rule, shape, step, shares)
            if dense_ns is None:
                dense_ns = gpu_ns(STOCK[base](shape, step, trial.pool))
            # The public wrapper plans every layer on the CPU, longer than the GPU may take: that is part of its time.
            attention_ns = gpu_ns(trial.attend, launched_ahead=isinstance(kernel, Sm90Prefill))
            yield _sample(trial, density, attention_ns, gpu_ns(trial.select), dense_ns)


def gpu_ns(call: Callable[[], object], rounds: int = 15, *, launched_ahead: bool = True) -> int:
    """Median time between first and last kernel, ns, from a cold L2 cache, after matrix products.

    In a server attention runs between the products of a model's other layers: they draw so much power that clocks fall,
    which costs attention up to a fifth, and while they run the CPU launches ahead.

    launched_ahead: the products keep the GPU busy until the CPU has launched everything. Without that, short steps show
    how fast Python launches kernels.
    """
    flush = torch.empty(_L2_BYTES, dtype=torch.uint8, device="cuda")
    left, right = (
        torch.randn((rows, _COMPANY_WIDTH), device="cuda", dtype=torch.bfloat16)
        for rows in (_COMPANY_ROWS, _COMPANY_WIDTH)
    )
    call()
    spans = []
    for _ in range(rounds):
        span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        for _ in range(_COMPANY):
            left @ right
        flush.zero_()
        if not launched_ahead:
            torch.cuda.synchronize()
        span[0].record()
        call()
        span[1].record()
        spans.append(span)
    torch.cuda.synchronize()
    return round(1e6 * float(np.median([start.elapsed_time(end) for start, end in spans])))


def _sample(trial: TrialStep, density: float, attention_ns: int, selection_ns: int, dense_ns: int) -> Sample:
    shape, step, tile = trial.shape, trial.step, _KV_TILE[trial.shape.head_dim]
    block = trial.rule.query_block
    starts = np.arange(step.prefix // block, (step.prefix + step.new - 1) // block + 1)
    visible = -(-np.minimum((starts + 1) * block, step.prefix + step.new) // PAGE_SIZE)
    tiles = -(-trial.table(4).astype(np.int64) // tile)
    heads = shape.num_qo_heads
    return Sample(
        prefix=step.prefix,
        new=step.new,
        density=density,
        items=trial.planned.plan.num_items,
        kv_tiles=int(tiles.sum()),
        longest_kv_tiles=int(tiles.max()),
        dense_items=heads * len(starts),
        dense_kv_tiles=int((-(-visible * PAGE_SIZE // tile)).sum()) * heads,
        head_blocks=heads * len(starts),
        head_pairs=heads * int(visible.sum()),
        kv_pages=shape.num_kv_heads * num_pages(step.prefix + step.new),
        attention_ns=attention_ns,
        selection_ns=selection_ns,
        dense_ns=dense_ns,
    )


def measure_rates(shape: tuple[int, int, int], dtype: str, base: str, max_tokens: int) -> GpuRates:
    """Rates of the first GPU; shape: query heads and KV heads of a rank, head_dim. ValueError if it can't be timed."""
    if not torch.cuda.is_available():
        raise ValueError("no GPU was found, and rates are a GPU's; run this on the machine that serves.")
    device = torch.device("cuda", 0)
    kernel = make_kernel(getattr(torch, dtype), shape[2], device)
    try:
        samples = list(time_steps(kernel, Shape(*shape), base, max_tokens))
    except UnavailableError as error:
        raise ValueError(f"{error}; choose the other --base, or install SGLang's kernels.") from None
    cost, launch_ns = fit(samples, kernel.num_ctas)
    return GpuRates(
        gpu=torch.cuda.get_device_name(device),
        num_ctas=kernel.num_ctas,
        dtype=dtype,
        head_dim=shape[2],
        group_size=shape[0] // shape[1],
        base=base,
        cost=fields_of(cost),
        launch_ns=launch_ns,
        samples=samples,
        versions={name: version(name) for name in ("shplb", "torch", "flashinfer-python", "triton")},
    )
