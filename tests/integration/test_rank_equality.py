# SPDX-License-Identifier: Apache-2.0
"""Sparse attention gives the same pages and tokens at TP 1, 2 (padded) and 3, and the server's usual tools work."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from plugged_model import PluggedModel
from scenario import greedy, prompts, random_plan, server

from shplb.sglang.launch import Server
from shplb.sglang.trace import read_trace
from shplb.sparsity import SparsityRule

pytestmark = pytest.mark.server

LENGTHS = [270, 280, 290, 300, 310, 319, 320, 321, 330, 340, 350, 360, 370, 383, 384, 385, 390, 400, 410, 420,
           447, 448, 449, 500, 512, 576, 600, 640, 900, 2900]  # fmt: skip

RULE = SparsityRule(query_block=192)
Lists = dict[tuple[str, int, int, int, int], tuple[np.ndarray, np.ndarray]]


class Run:
    """What one server gave: answers in prompt order, page lists of real heads, and its own counters."""

    def __init__(self, answers: list[dict], lists: Lists, state: dict) -> None:
        self.answers, self.lists, self.state = answers, lists, state

    @property
    def row_pages(self) -> int:
        """(query row, kept page) pairs of all sparse steps of the prompts."""
        return sum(
            (end_row - first_row) * len(pages) for (_, _, _, first_row, end_row), (pages, _) in self.lists.items()
        )

    def tokens(self, index: int) -> list[int]:
        return [token for _, token, _ in self.answers[index]["meta_info"]["output_token_logprobs"]]


def serve(model: Path, tp_size: int, folder: Path, batch: list[list[int]]) -> Run:
    trace, plan_path = folder / f"trace{tp_size}", folder / f"tp{tp_size}.plan.safetensors"
    plan = random_plan(model, tp_size, plan_path, dense=False)
    flags = ["--enable-shplb", "--shplb-plan", str(plan_path), "--shplb-trace", str(trace)]
    shadow = {"SHPLB_SHADOW_EVERY": "4"}
    with server(model, folder / f"server{tp_size}.log", tp_size, *flags, env=shadow) as running:
        running.wait_ready()
        # One at a time: how requests meet in a batch depends on timing, and this compares page lists.
        answers = [greedy(running, [prompt], [f"prompt{i:02d}"])[0] for i, prompt in enumerate(batch)]
        state = running.shplb_state()
        if tp_size == 2:
            check_chat_streaming(running, model)
            check_bench_serving(running, model, folder)
            assert running.shplb_state()["sparse_steps"] > state["sparse_steps"]
    real = plan.model.num_qo_heads - len(plan.model.inert_kv_heads) * plan.model.group_size
    lists: Lists = {}
    for path in sorted(trace.glob("*.trace.safetensors")):
        lists |= {
            key: value for key, value in read_trace(path).items() if key[2] < real and key[0].startswith("prompt")
        }
    return Run(answers, lists, state)


@pytest.fixture(scope="module")
def runs(smollm2_short: Path, smollm2_short_padded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    folder, batch = tmp_path_factory.mktemp("ranks"), prompts(smollm2_short, LENGTHS)
    return {tp: serve(smollm2_short_padded if tp == 2 else smollm2_short, tp, folder, batch) for tp in (1, 2, 3)}


@pytest.mark.parametrize("tp_size", [2, 3])
def test_page_lists_are_the_same(runs: dict[int, Run], tp_size: int) -> None:
    one, many = runs[1].lists, runs[tp_size].lists
    assert one.keys() == many.keys()
    assert len(one) > 5_000
    different = [key for key in one if not np.array_equal(one[key][0], many[key][0])]
    assert len(different) <= 0.001 * len(one), f"{len(different)} of {len(one)} lists differ"
    for key in different:
        pages, scores = one[key]
        other = many[key][0]
        assert len(pages) == len(other)
        sink_end, first_local = RULE.forced_pages(key[3], key[4])
        kth = scores[[page for page in pages if sink_end <= page < first_local]].min()
        assert np.all(np.abs(scores[np.setxor1d(pages, other)] - kth) <= 1e-4), key


@pytest.mark.parametrize("tp_size", [2, 3])
def test_greedy_tokens_are_the_same(runs: dict[int, Run], tp_size: int) -> None:
    different = [index for index in range(len(LENGTHS)) if runs[1].tokens(index) != runs[tp_size].tokens(index)]
    assert len(different) <= 1, different
    for index in different:
        step = next(
            i for i, (a, b) in enumerate(zip(runs[1].tokens(index), runs[tp_size].tokens(index), strict=True)) if a != b
        )
        best, second = (value for value, _, _ in runs[1].answers[index]["meta_info"]["output_top_logprobs"][step][:2])
        assert best - second < 1e-2, f"prompt {index}: not a near-tie"


def test_answers_are_those_of_the_same_sparse_attention_in_transformers(
    runs: dict[int, Run], smollm2_short: Path, tmp_path: Path
) -> None:
    """Pool, page table, KV writes and chunks of the server against the kernels alone in another engine."""
    batch, plan = prompts(smollm2_short, LENGTHS), random_plan(smollm2_short, 1, tmp_path / "plan", dense=False)
    model = PluggedModel(smollm2_short, max(LENGTHS))
    for index in (0, 1, 3, LENGTHS.index(900)):  # in one chunk and without a prefix hit, so blocks are cut alike
        answer = runs[1].answers[index]["meta_info"]
        assert answer["cached_tokens"] == 0
        value, token, _ = answer["output_token_logprobs"][0]
        sparse = torch.log_softmax(model.logits(batch[index], plan)[-1].double(), -1)
        dense = torch.log_softmax(model.logits(batch[index], None)[-1].double(), -1)
        assert token == int(sparse.argmax())
        assert value == pytest.approx(sparse[token].item(), abs=1e-3)
        assert abs(value - dense[token].item()) > 2e-3, "too close to dense to tell the two apart"


def test_shadow_checks_find_the_same_on_all_ranks_together(runs: dict[int, Run]) -> None:
    """Rows are chosen by a seed, so the same are checked at every TP size, and heads of padding don't count."""
    one = runs[1].state
    assert one["shadow_checks"] >= 4
    lost, error = np.array(one["shadow_lost_mass"]), np.array(one["shadow_output_error"])
    assert np.all((lost > 0.0) & (lost < 0.9) & (error > 0.0) & (error < 2.0))
    assert one["shadow_mass_drift"] is None, "random plans don't know what the profile recovered"
    for tp_size in (2, 3):
        state = runs[tp_size].state
        assert state["shadow_checks"] == one["shadow_checks"]
        np.testing.assert_allclose(state["shadow_lost_mass"], lost, atol=0.01)
        np.testing.assert_allclose(state["shadow_output_error"], error, rtol=0.1)


def test_work_was_saved_and_counted(runs: dict[int, Run]) -> None:
    for tp_size, run in runs.items():
        assert run.state["sparse_steps"] > 20
        assert 0.2 < run.state["density"] < 0.8
        assert len(run.state["rank_loads"]) == tp_size
        assert (
            sum(run.state["rank_loads"]) == sum(run.state["contiguous_rank_loads"]) == run.state["computed_row_pages"]
        )
        for name in ("imbalance", "contiguous_imbalance"):
            assert 1.0 <= run.state[name] <= tp_size
            assert (run.state[name] == 1.0) == (tp_size == 1)
        # Counters hold more than the prompts: a health check of a starting server prefills a token, too.
        assert run.state["computed_row_pages"] >= run.row_pages
    assert len({run.row_pages for run in runs.values()}) == 1
    assert any(answer["meta_info"]["cached_tokens"] > 0 for answer in runs[1].answers)


def check_chat_streaming(running: Server, model: Path) -> None:
    body = {
        "model": str(model),
        "messages": [{"role": "user", "content": "Name a colour. " * 120}],
        "max_tokens": 8,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{running.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        events = [line[6:].strip() for line in answer if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    deltas = [json.loads(event)["choices"] for event in events[:-1]]
    assert sum(bool(choices and choices[0]["delta"].get("content")) for choices in deltas) >= 2


def check_bench_serving(running: Server, model: Path, folder: Path) -> None:
    out = folder / "bench.jsonl"
    command = [sys.executable, "-m", "sglang.benchmark.serving", "--backend", "sglang", "--port", str(running.port)]
    command += ["--dataset-name", "random-ids", "--num-prompts", "3", "--random-input-len", "600"]
    command += ["--random-output-len", "4", "--random-range-ratio", "1.0", "--model", str(model)]
    command += ["--tokenizer", str(model), "--output-file", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(out.read_text().splitlines()[-1])["completed"] == 3
