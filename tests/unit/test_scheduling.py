# SPDX-License-Identifier: Apache-2.0
"""The simulator's prefill batches, against a plain reference page by page and against SGLang's own PrefillAdder."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from shplb.scheduling import MAX_PREFILL_TOKENS, PrefillQueue

Step = list[tuple[int, int]]  # (cached tokens, new tokens) of each request


def steps_of(prompts: list[tuple[int, int]], chunk: int) -> Iterator[Step]:
    queue = PrefillQueue(chunk)
    for index, (total, prefix) in enumerate(prompts):
        queue.add(index, total, prefix)
    while batch := queue.next_batch():
        yield list(zip(batch.prefix_lens, batch.new_lens, strict=True))


def page_by_page(prompts: list[tuple[int, int]], chunk: int) -> Iterator[Step]:
    """Deals the pages of a step one at a time to the first prompt that still has some."""
    todo = [[min(prefix, total - 1) // 64 * 64, total] for total, prefix in prompts]
    while todo:
        pages, step = chunk // 64, []
        while todo and pages and sum(new for _, new in step) < MAX_PREFILL_TOKENS:
            done, total = todo[0]
            new = 0
            while pages and done + new < total:
                new, pages = min(new + 64, total - done), pages - 1
            step.append((done, new))
            todo[0][0] += new
            if todo[0][0] < total:
                break
            todo.pop(0)
        yield step


def sglang_steps(prompts: list[tuple[int, int]], chunk: int) -> Iterator[Step]:
    """SGLang's PrefillAdder with room for everything, called as ``Scheduler.get_new_batch_prefill`` does."""
    from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

    cache, allocator = MagicMock(disable=False), MagicMock()
    cache.supports_mamba.return_value = False
    cache.evictable_size.return_value, allocator.available_size.return_value = 0, 1 << 40
    waiting = [Request(total, min(prefix, total - 1) // 64 * 64) for total, prefix in prompts]
    chunked: Request | None = None
    while waiting or chunked:
        limit = chunk if chunk > 0 else None
        adder = PrefillAdder(64, cache, allocator, None, 1.0, MAX_PREFILL_TOKENS, limit)
        if chunked is not None:
            chunked = adder.add_chunked_req(chunked)
        for request in waiting:
            result = adder.add_one_req(request, has_chunked_req=chunked is not None, truncation_align_size=None)
            if result != AddReqResult.CONTINUE:
                break
        waiting = [request for request in waiting if request not in adder.can_run_list]
        chunked = adder.new_chunked_req or chunked
        yield [(len(r.prefix_indices), r.extend_range[1] - r.extend_range[0]) for r in adder.can_run_list]
        for request in adder.can_run_list:
            request.prefix_indices = range(request.extend_range[1])


class Request:
    """What PrefillAdder reads of a request."""

    def __init__(self, total: int, prefix: int) -> None:
        self.full_untruncated_fill_ids, self.prefix_indices, self.output_ids = range(total), range(prefix), []
        self.sampling_params = SimpleNamespace(max_new_tokens=10, ignore_eos=False)
        self.host_hit_length, self.last_node, self.retracted_stain = 0, None, False
        self.extend_range: Any = None

    def needs_host_load_back(self) -> bool:
        return False

    def set_extend_range(self, start: int, end: int) -> None:
        length = end - start
        self.extend_range = type("Range", (tuple,), {"length": length})((start, end))


def random_prompts(seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    totals = np.exp(rng.uniform(0, np.log(40_000), 30)).astype(int)
    prefixes = totals * rng.uniform(-0.5, 1.1, 30)
    return [(int(total), max(int(prefix), 0)) for total, prefix in zip(totals, prefixes, strict=True)]


def test_chunks_by_hand() -> None:
    """Two requests in a step, a page of one that goes on, and a cached prompt whose last token is computed anyway."""
    steps = list(steps_of([(192, 0), (100, 0), (70, 64), (64, 64)], 128))
    assert steps == [[(0, 128)], [(128, 64), (0, 64)], [(64, 36), (64, 6)], [(0, 64)]]


@pytest.mark.parametrize("chunk", [64, 512, 8192, 32768])
@pytest.mark.parametrize("seed", range(5))
def test_chunks_are_those_of_the_reference(seed: int, chunk: int) -> None:
    prompts = random_prompts(seed)
    steps = list(steps_of(prompts, chunk))
    assert steps == list(page_by_page(prompts, chunk))
    assert sum(new for step in steps for _, new in step) == sum(
        total - min(prefix, total - 1) // 64 * 64 for total, prefix in prompts
    )


@pytest.mark.usefixtures("server_environment")
def test_chunks_are_those_of_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = pytest.importorskip("sglang.srt.managers.schedule_policy")
    for name in ("is_dsa_prefill_cp_in_seq_split", "is_prefill_context_parallel_enabled"):
        monkeypatch.setattr(policy, name, lambda: False)  # they ask for arguments of a running server
    for chunk in (64, 512, 8192, 32768, -1):
        for seed in range(5):
            prompts = random_prompts(seed)
            assert list(steps_of(prompts, chunk)) == list(sglang_steps(prompts, chunk)), (chunk, seed)


def test_whole_prompts_share_a_step_up_to_the_limit() -> None:
    sizes = [20_000, 10_000, 6_000, 400, 64]
    steps = list(steps_of([(size, 0) for size in sizes], -1))
    assert [[new for _, new in step] for step in steps] == [[20_000], [10_000, 6_000], [400, 64]]


def test_chunk_size_is_whole_pages() -> None:
    with pytest.raises(ValueError, match="--chunked-prefill-size is 100, expected a multiple of 64"):
        PrefillQueue(100)
