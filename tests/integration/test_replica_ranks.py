# SPDX-License-Identifier: Apache-2.0
"""Copies of KV groups on real servers: TP 3, and TP 2 of the padded model, with a slot more per rank, equal TP 1."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scenario import greedy, prompts, random_plan, server

from shplb.sglang.trace import read_trace

pytestmark = pytest.mark.server

# Whole and ragged blocks, prefix hits (every third), two chunks.
LENGTHS = [300, 321, 400, 449, 500, 576, 640, 1900]
TOGETHER = 4

Lists = dict[tuple[str, int, int, int, int], np.ndarray]


class Run:
    """Answers one by one and in a batch, and the page lists of every rank and step."""

    def __init__(self, model: Path, tp_size: int, folder: Path, replicas: int) -> None:
        trace, plan_path = folder / f"trace{tp_size}", folder / f"tp{tp_size}.plan.safetensors"
        self.plan = random_plan(model, tp_size, plan_path, dense=False, replicas=replicas)
        flags = ["--enable-shplb", "--shplb-plan", str(plan_path), "--shplb-trace", str(trace)]
        batch = prompts(model, LENGTHS)
        with server(model, folder / f"server{tp_size}.log", tp_size, *flags) as running:
            running.wait_ready()
            self.answers = [greedy(running, [prompt], [f"prompt{i:02d}"])[0] for i, prompt in enumerate(batch)]
            running.flush_cache()
            some = batch[:TOGETHER]
            self.answers += greedy(running, some, [f"batch{i:02d}" for i in range(len(some))])
            self.state = running.shplb_state()
        self.steps: dict[str, dict[int, Lists]] = defaultdict(dict)
        for path in sorted(trace.glob("*.trace.safetensors")):
            step, rank = path.name.split(".")[:2]
            self.steps[step][int(rank[4:])] = {key: pages for key, (pages, _) in read_trace(path).items()}

    @property
    def lists(self) -> Lists:
        """Of all ranks, of prompts that were sent alone: how others meet in a batch depends on timing."""
        ranks = [lists for step in self.steps.values() for lists in step.values()]
        return {key: pages for lists in ranks for key, pages in lists.items() if key[0].startswith("prompt")}

    def tokens(self, index: int) -> list[int]:
        return [token for _, token, _ in self.answers[index]["meta_info"]["output_token_logprobs"]]


@pytest.fixture(scope="module")
def runs(smollm2_short: Path, smollm2_short_padded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """By TP size; with copies but for one rank."""
    folder = tmp_path_factory.mktemp("replicas")
    models = {1: smollm2_short, 2: smollm2_short_padded, 3: smollm2_short}
    return {tp: Run(model, tp, folder, int(tp > 1)) for tp, model in models.items()}


@pytest.mark.parametrize("tp_size", [2, 3])
def test_greedy_tokens_are_those_of_one_rank(runs: dict[int, Run], tp_size: int) -> None:
    one, copied = runs[1], runs[tp_size]
    for index, answer in enumerate(one.answers):
        pairs = zip(one.tokens(index), copied.tokens(index), strict=True)
        step = next((step for step, (a, b) in enumerate(pairs) if a != b), None)
        if step is not None:
            best, second = (value for value, _, _ in answer["meta_info"]["output_top_logprobs"][step][:2])
            assert best - second < 1e-2, f"answer {index}: not a near-tie"
    assert any(answer["meta_info"]["cached_tokens"] > 0 for answer in copied.answers)


@pytest.mark.parametrize("tp_size", [2, 3])
def test_every_list_is_computed_by_one_copy_and_is_that_of_one_rank(runs: dict[int, Run], tp_size: int) -> None:
    one, copied = runs[1], runs[tp_size]
    for ranks in copied.steps.values():
        keys = [key for lists in ranks.values() for key in lists]
        assert len(keys) == len(set(keys))
    real = one.plan.model.num_qo_heads  # those of padding come after them
    found = {key: pages for key, pages in copied.lists.items() if key[2] < real}
    assert found.keys() == one.lists.keys()
    different = [key for key, pages in one.lists.items() if not np.array_equal(pages, found[key])]
    # Ranks sum in another order, and scores can tie.
    assert len(different) <= 0.001 * len(one.lists), f"{len(different)} of {len(one.lists)} lists differ"


def test_the_split_follows_the_step(runs: dict[int, Run]) -> None:
    copied = runs[3]
    assert copied.plan.copied.all()
    shares = defaultdict(set)
    for ranks in copied.steps.values():
        of_layer = [dict.fromkeys(range(copied.plan.model.num_layers), 0) for _ in range(3)]
        for rank, lists in ranks.items():
            for _, layer, head, _, _ in lists:
                of_layer[rank][layer] += head < copied.plan.model.group_size
        for layer in range(copied.plan.model.num_layers):
            counts = [of_layer[rank][layer] for rank in range(3)]
            assert sum(count > 0 for count in counts) in (1, 2)
            shares[layer].add(max(counts) / sum(counts))
    assert all(len(found) > 1 for found in shares.values())
    assert len(copied.state["rank_loads"]) == 3
    assert 1.0 <= copied.state["imbalance"] < copied.state["contiguous_imbalance"]
