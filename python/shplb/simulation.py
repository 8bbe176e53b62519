# SPDX-License-Identifier: Apache-2.0
"""Replays a request trace under a plan, step by step: TTFT, attention time, waiting between ranks.

Which requests a step prefills comes from :mod:`shplb.scheduling`; how long its attention takes, from the step planner
that serving uses. A step's duration decides which requests wait when it ends, so placements see different batches.

What a step takes besides attention is ``step_ms + token_us * new tokens``, and a request ``prompt_us * prompt tokens``
before its first step, beside other requests' steps. ``shplb.step_fit`` fits the three to measured times to first token.
The defaults are that fit for a Llama-3.1-8B shape at TP=2 on H200 (`bench/results/serving.json`, stock SGLang). That a
decode step takes 5 ms whatever its batch is assumed. Nothing scales with the TP size but attention. Replicas cost their
projections, too; that decoding reads both copies is left out.
"""

from collections import deque
from dataclasses import dataclass, replace
from heapq import heappop, heappush

import numpy as np

from shplb.allocation import placed_order
from shplb.device import H200, Device
from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.planner import Mode, StepPlanner
from shplb.planning import check_tp_size
from shplb.prediction import projections_ms
from shplb.scheduling import PrefillQueue
from shplb.simulator import Simulation, simulate
from shplb.sparsity import PAGE_SIZE, num_pages
from shplb.traces import Trace

#: Fitted to stock SGLang, see above.
STEP_MS, TOKEN_US, PROMPT_US = 14.5, 10.9, 0.15


@dataclass(frozen=True)
class StepCost:
    """Time of a step besides prefill attention, and of a request besides its steps; ``--chunked-prefill-size``."""

    step_ms: float = STEP_MS
    token_us: float = TOKEN_US
    prompt_us: float = PROMPT_US
    decode_ms: float = 5.0
    chunk_tokens: int = 8192  # SGLang's default on H100 and H200

    def __post_init__(self) -> None:
        for name in ("step_ms", "token_us", "prompt_us", "decode_ms"):
            value = getattr(self, name)
            if not 0.0 <= value < 1e6:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, expected 0 or more and less than a million.")

    def prefill_s(self, new_tokens: int, attention_ns: int) -> float:
        return self.step_ms * 1e-3 + self.token_us * 1e-6 * new_tokens + attention_ns * 1e-9


@dataclass(frozen=True)
class Replay:
    """What happened to a trace: ``ttft_s`` float64 [num_requests], and its prefill steps in the form of `simulate`."""

    ttft_s: np.ndarray
    step_indptr: np.ndarray
    prefix_lens: np.ndarray
    new_lens: np.ndarray
    num_decode_steps: int
    duration_s: float


@dataclass(frozen=True)
class Summary:
    """One placement at one TP size over a whole trace.

    Attributes:
        ttft_*_s: time to first token over requests, from when the client sends; percentiles as in numpy.
        attention_s: sum over prefill steps of predicted attention time, page selection and stock path included.
        makespan_s: the part of it that the sparse kernel takes: summed over steps and layers, the slowest rank.
        bubble: share of ``makespan_s`` that a rank waits on average, since ranks meet after every layer.
        balancedness: mean over largest of the ranks' sparse attention time, each summed over the trace.
        sparse_share: share of the requests in prefill steps that took the sparse path.
    """

    tp_size: int
    placement: str
    prefill_steps: int
    decode_steps: int
    duration_s: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    attention_s: float
    makespan_s: float
    bubble: float
    balancedness: float
    sparse_share: float


def compare_placements(
    plan: ServingPlan,
    trace: Trace,
    tp_sizes: tuple[int, ...],
    cost: StepCost,
    device: Device = H200,
) -> list[Summary]:
    """The trace under stock dense attention, and sparse with contiguous and with placed heads, at every TP size; and
    with replicas, where the plan has some and as many fit.

    Raises:
        PlanningError: a TP size does not divide the KV heads.
    """
    orders = {(tp, name): head_order(plan, tp, name) for tp in tp_sizes for name in placements(plan, tp)}
    longest = num_pages(int(trace.input_tokens.max())) * PAGE_SIZE
    keep = plan.budget_table(longest).pages
    summaries = []
    for tp in tp_sizes:
        for name in ("dense", *placements(plan, tp)):
            charged = with_copies(cost, plan, device) if name == "replicas" else cost
            order = orders[tp, "contiguous" if name == "dense" else name]
            planner = planner_of(plan, keep, order, tp, cost=device.cost, num_ctas=device.num_ctas)
            mode: Mode = "dense" if name == "dense" else "auto"
            replay = replay_trace(planner, trace, charged, mode)
            steps = simulate(planner, replay.step_indptr, replay.prefix_lens, replay.new_lens, mode)
            summaries.append(summarise(tp, name, replay, steps))
    return summaries


def with_copies(cost: StepCost, plan: ServingPlan, device: Device) -> StepCost:
    """``cost`` with the projections that replicas add to every token; as it is where their rate is unknown."""
    added_us = 1e3 * (projections_ms(plan, 1, device) or 0.0)
    return replace(cost, token_us=cost.token_us + added_us)


def placements(plan: ServingPlan, tp_size: int) -> tuple[str, ...]:
    """Ways to place heads that are compared."""
    check_tp_size(plan.model, tp_size)
    fit = 0 < plan.replicas <= plan.model.num_kv_heads // tp_size and tp_size > 1
    return ("contiguous", "placed", "replicas") if fit else ("contiguous", "placed")


def head_order(plan: ServingPlan, tp_size: int, placement: str) -> np.ndarray:
    """int32 [num_layers, slots of all ranks], the KV group in each slot: the model's own order for ``contiguous``; for
    ``placed`` and ``replicas`` the plan's, or a new one from the plan's loads where the plan has none."""
    check_tp_size(plan.model, tp_size)
    if placement == "contiguous":
        return plan.own_order
    replicas = plan.replicas if placement == "replicas" else 0
    if tp_size == plan.tp_size and replicas == plan.replicas:
        return plan.physical_to_logical
    return placed_order(plan.loads, tp_size, replicas)


def replay_trace(planner: StepPlanner, trace: Trace, cost: StepCost, mode: Mode = "auto") -> Replay:
    """Serve the trace in simulated time, one step at a time, on one server."""
    client, queue, running = _Client(trace), PrefillQueue(cost.chunk_tokens), _Running()
    ttft = np.zeros(len(trace.arrival_s))
    prefix_lens: list[int] = []
    new_lens: list[int] = []
    indptr = [0]
    now = 0.0
    while True:
        for index in client.send(now):
            queue.add(index, int(trace.input_tokens[index]), int(trace.prefix_tokens[index]))
        if batch := queue.next_batch():
            prefix, new = np.array(batch.prefix_lens), np.array(batch.new_lens)
            now += cost.prefill_s(sum(batch.new_lens), planner.predict(prefix, new, mode).step_ns)
            prefix_lens += batch.prefix_lens
            new_lens += batch.new_lens
            indptr.append(len(new_lens))
            for index in batch.finished:
                ttft[index] = now - client.sent_s[index] + cost.prompt_us * 1e-6 * float(trace.input_tokens[index])
                running.add(int(trace.output_tokens[index]) - 1)
            client.free(running.pop_finished(), now)
        elif running.count:
            now += running.decode(client.next_time(), now, cost.decode_ms * 1e-3)
            client.free(running.pop_finished(), now)
        elif (later := client.next_time()) is not None:
            now = later
        else:
            break
    return Replay(ttft, np.array(indptr), np.array(prefix_lens), np.array(new_lens), running.steps, now)


class _Client:
    """Sends requests in the order of the trace: when they arrive, and a slot is free where concurrency is limited."""

    def __init__(self, trace: Trace) -> None:
        self._arrivals: list[float] = trace.arrival_s.tolist()
        slots = None if trace.concurrency is None else min(trace.concurrency, len(self._arrivals))
        self._slots = None if slots is None else deque([0.0] * slots)  # when each got free
        self._next = 0
        self.sent_s = [0.0] * len(self._arrivals)

    def next_time(self) -> float | None:
        """When the next request is sent; None when all were, or when it waits for another to finish."""
        if self._next == len(self._arrivals) or (self._slots is not None and not self._slots):
            return None
        return max(self._arrivals[self._next], self._slots[0] if self._slots else 0.0)

    def send(self, now: float) -> list[int]:
        sent = []
        while (time := self.next_time()) is not None and time <= now:
            self.sent_s[self._next] = time
            sent.append(self._next)
            self._next += 1
            if self._slots is not None:
                self._slots.popleft()
        return sent

    def free(self, count: int, now: float) -> None:
        if self._slots is not None:
            self._slots.extend([now] * count)


class _Running:
    """Requests in decode: all take part in every decode step and get one token each."""

    def __init__(self) -> None:
        self.steps = 0
        self._ends: list[int] = []  # heap: value of ``steps`` at which each request ends

    @property
    def count(self) -> int:
        return len(self._ends)

    def add(self, num_tokens: int) -> None:
        heappush(self._ends, self.steps + num_tokens)

    def decode(self, next_arrival: float | None, now: float, step_s: float) -> float:
        """Decode until a request ends, or the first step boundary at which another one waits; returns the seconds."""
        count = self._ends[0] - self.steps
        if next_arrival is not None and step_s > 0:
            count = min(count, max(int(np.ceil((next_arrival - now) / step_s)), 1))
        self.steps += count
        return count * step_s

    def pop_finished(self) -> int:
        count = 0
        while self._ends and self._ends[0] <= self.steps:
            heappop(self._ends)
            count += 1
        return count


def summarise(tp_size: int, placement: str, replay: Replay, steps: Simulation) -> Summary:
    """Statistics over all requests and prefill steps, see :class:`Summary`."""
    makespan, ranks = int(steps.makespan_ns.sum()), steps.rank_ns.sum(axis=0)
    return Summary(
        tp_size=tp_size,
        placement=placement,
        prefill_steps=len(replay.step_indptr) - 1,
        decode_steps=replay.num_decode_steps,
        duration_s=replay.duration_s,
        **ttft_statistics(replay.ttft_s),
        attention_s=float(steps.step_ns.sum()) * 1e-9,
        makespan_s=makespan * 1e-9,
        bubble=1.0 - float(ranks.mean()) / makespan if makespan else 0.0,
        balancedness=float(ranks.mean() / ranks.max()) if makespan else 1.0,
        sparse_share=float(steps.num_sparse.sum()) / len(replay.new_lens),
    )


def ttft_statistics(ttft_s: np.ndarray) -> dict[str, float]:
    """Mean, median and 99th percentile over requests, seconds; as SGLang's benchmark computes them."""
    mean, (p50, p99) = float(ttft_s.mean()), np.percentile(ttft_s, [50, 99]).tolist()
    return {"ttft_mean_s": mean, "ttft_p50_s": p50, "ttft_p99_s": p99}
