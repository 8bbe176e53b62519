# SPDX-License-Identifier: Apache-2.0
"""Attention time of one prompt under a plan, as the step planner predicts it: contiguous, placed, and a lower bound."""

from dataclasses import dataclass

import numpy as np

from shplb.allocation import placed_order
from shplb.device import H200, Device
from shplb.placement import place_heads
from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.replica_price import price_of
from shplb.replicas import place_replicas
from shplb.simulator import Simulation, simulate
from shplb.sparsity import PAGE_SIZE, num_pages

#: SGLang's ``--chunked-prefill-size`` on H100 and H200.
CHUNK_TOKENS = 8192

#: Longest prompt that is predicted; the tables of a 70B model then take about a gigabyte.
MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class PromptPrediction:
    """One prompt, prefilled alone in chunks of 8192 tokens on the GPU that the cost model describes.

    Times are milliseconds over all layers; in each layer the slowest rank counts, since ranks meet after it. Page
    selection is included, and a chunk that is predicted to be faster on the stock path takes it.

    Attributes:
        dense_ms: every chunk on the stock path.
        contiguous_ms: the plan's budgets, heads as stock SGLang shards them.
        placed_ms: the plan as it is, replicas divided step by step.
        whole_ms: the plan's budgets, whole KV groups placed, none copied; ``placed_ms`` where the plan has no replicas.
        bound_ms: no placement in as many slots takes less, if the chunks that run sparse stay so.
        projections_ms: what replicas add to the q, k, v and o projections of all layers; None where that GPU's rate of
            such products is not known.
        replicas_save_ms: attention that replicas save against whole groups, less what their projections cost.
        sparse_chunks, chunks: how many chunks run sparse as placed, of how many.
        extrapolated: the prompt is longer than any the profile measured.
    """

    tokens: int
    dense_ms: float
    contiguous_ms: float
    placed_ms: float
    bound_ms: float
    sparse_chunks: int
    chunks: int
    extrapolated: bool
    whole_ms: float
    projections_ms: float | None
    replicas_save_ms: float | None


def predict_prompt(plan: ServingPlan, tokens: int | None = None, device: Device = H200) -> PromptPrediction:
    """Predict the attention time of a prompt of ``tokens`` (default: the longest profiled length).

    ValueError where ``tokens`` is not in [1, 2^20].
    """
    longest = int(plan.lengths[-1])
    tokens = check_tokens(longest if tokens is None else tokens)
    pages = _pages(plan, tokens)
    contiguous = _simulate(plan, pages, plan.own_order, tokens, device)
    placed = _simulate(plan, pages, plan.physical_to_logical, tokens, device)
    whole = _simulate(plan, pages, placed_order(plan.loads, plan.tp_size), tokens, device) if plan.replicas else placed
    sparse = placed.num_sparse > 0
    bound_ns = int(placed.step_ns.sum())
    if sparse.any():
        bound_ns += _bound_ns(plan, pages, tokens, device, sparse) - int(placed.makespan_ns.sum())
    placed_ms, whole_ms = (float(steps.step_ns.sum()) * 1e-6 for steps in (placed, whole))
    added_ms = projections_ms(plan, tokens, device)
    return PromptPrediction(
        tokens=tokens,
        dense_ms=float(contiguous.dense_ns.sum()) * 1e-6,
        contiguous_ms=float(contiguous.step_ns.sum()) * 1e-6,
        placed_ms=placed_ms,
        bound_ms=bound_ns * 1e-6,
        sparse_chunks=int(sparse.sum()),
        chunks=len(sparse),
        extrapolated=tokens > longest,
        whole_ms=whole_ms,
        projections_ms=added_ms,
        replicas_save_ms=None if added_ms is None else whole_ms - placed_ms - added_ms,
    )


def projections_ms(plan: ServingPlan, tokens: int, device: Device) -> float | None:
    """What replicas add to the projections of so many tokens; None where the GPU's rate is not known."""
    if device.gemm_flops_per_s is None:
        return None
    return price_of(plan).flops_per_token * tokens / device.gemm_flops_per_s * 1e3


def placed_ms(plan: ServingPlan, tokens: int, device: Device = H200, chunk_tokens: int = CHUNK_TOKENS) -> float:
    """``predict_prompt(...).placed_ms`` alone, in chunks of any size."""
    steps = _simulate(plan, _pages(plan, tokens), plan.physical_to_logical, tokens, device, chunk_tokens)
    return float(steps.step_ns.sum()) * 1e-6


def check_tokens(tokens: int) -> int:
    """``tokens`` itself; ValueError where it is not the length of a prompt that can be predicted."""
    if not 1 <= tokens <= MOST_TOKENS:
        raise ValueError(f"--at-tokens is {tokens}, expected a prompt of 1 to {MOST_TOKENS} tokens.")
    return tokens


def _pages(plan: ServingPlan, tokens: int) -> np.ndarray:
    return np.asarray(plan.budget_table(num_pages(tokens) * PAGE_SIZE).pages)


def chunks_of(tokens: int, chunk_tokens: int = CHUNK_TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """Cached and new tokens of each step."""
    prefix_lens = np.arange(0, tokens, chunk_tokens)
    return prefix_lens, np.minimum(tokens - prefix_lens, chunk_tokens)


def _simulate(
    plan: ServingPlan, pages: np.ndarray, order: np.ndarray, tokens: int, device: Device,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Simulation:  # fmt: skip
    """Every chunk of the prompt as one step."""
    planner = planner_of(plan, pages, order, plan.tp_size, cost=device.cost, num_ctas=device.num_ctas)
    prefix_lens, new_lens = chunks_of(tokens, chunk_tokens)
    return simulate(planner, np.arange(len(prefix_lens) + 1), prefix_lens, new_lens)


def _bound_ns(plan: ServingPlan, pages: np.ndarray, tokens: int, device: Device, sparse: np.ndarray) -> int:
    """Sum over layers of a lower bound on the slowest rank's time in the chunks marked ``sparse``.

    On one CTA a makespan is a plain sum, so KV groups on "ranks" of their own give loads that add up.
    """
    own = plan.own_order
    planner = planner_of(plan, pages, own, plan.model.num_kv_heads, num_ctas=1, cost=device.cost)
    loads = np.zeros(own.shape, dtype=np.int64)
    for prefix, new in zip(*(part[sparse] for part in chunks_of(tokens)), strict=True):
        loads += planner.predict(np.array([prefix]), np.array([new]), "sparse").rank_makespan_ns
    if plan.replicas:
        bounds = place_replicas(loads, plan.tp_size, plan.replicas, method="greedy").lower_bound
    else:
        bounds = np.asarray(place_heads(loads, plan.tp_size).lower_bound)
    return int(bounds.sum()) // device.num_ctas
