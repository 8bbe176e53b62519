# SPDX-License-Identifier: Apache-2.0
"""The last tokens of a prompt keep every page in a real server, wherever its chunks end."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from plugged_model import PluggedModel
from scenario import CHUNK_TOKENS, greedy, prompts, random_plan, server

from shplb.plan import ServingPlan
from shplb.sglang.trace import read_trace
from shplb.sparsity import num_pages

pytestmark = pytest.mark.server

TAIL = 100
LENGTHS = [700, CHUNK_TOKENS + 76]  # the second one's tail begins in its first chunk, and is all of its second one


def tail_plan(model: Path, path: Path, tokens: int) -> ServingPlan:
    plan = random_plan(model, 1, path, dense=False)
    plan = msgspec.structs.replace(plan, rule=msgspec.structs.replace(plan.rule, dense_tail_tokens=tokens))
    plan.save(path)
    return plan


def test_the_server_s_tails_are_dense(smollm2_short: Path, tmp_path: Path) -> None:
    plan, batch = tail_plan(smollm2_short, tmp_path / "plan", TAIL), prompts(smollm2_short, LENGTHS)
    flags = ["--enable-shplb", "--shplb-plan", str(tmp_path / "plan"), "--shplb-trace", str(tmp_path / "trace")]
    with server(smollm2_short, tmp_path / "server.log", 1, *flags) as running:
        running.wait_ready()
        answers = [greedy(running, [prompt], [f"prompt{i}"])[0] for i, prompt in enumerate(batch)]
    lists = {}
    for path in sorted((tmp_path / "trace").glob("*.trace.safetensors")):
        lists |= read_trace(path)
    for index, length in enumerate(LENGTHS):
        mine = {key: pages for key, (pages, _) in lists.items() if key[0] == f"prompt{index}"}
        assert max(end for *_, end in mine) == min(length, CHUNK_TOKENS)
        start = plan.rule.tail_start(length)
        assert start <= length - TAIL
        for (_, _, _, first, end), pages in mine.items():
            assert first < start or np.array_equal(pages, np.arange(num_pages(end)))
        assert any(len(pages) < num_pages(end) for (_, _, _, first, end), pages in mine.items() if first < start)
    reference, without = PluggedModel(smollm2_short, max(LENGTHS)), tail_plan(smollm2_short, tmp_path / "none", 0)
    for index in range(len(LENGTHS)):
        value, token, _ = answers[index]["meta_info"]["output_token_logprobs"][0]
        found, other = (
            torch.log_softmax(reference.logits(batch[index], each)[-1].double(), -1)[token].item()
            for each in (plan, without)
        )
        assert value == pytest.approx(found, abs=1e-3)
        assert abs(value - other) > 2e-3, "the tail changes nothing here"
