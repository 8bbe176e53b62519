# SPDX-License-Identifier: Apache-2.0
"""Placement is free of loss: with every page kept, permuted heads give what Hugging Face transformers gives."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from scenario import CACHE, NEW_TOKENS, greedy, prompts, random_plan, server

from shplb.container import write_atomically
from shplb.model import fingerprint

pytestmark = pytest.mark.server

LENGTHS = [5, 9, 16, 33, 40, 63, 64, 65, 80, 100, 127, 128, 129, 150, 160, 191, 192, 193, 200, 220,
           256, 320, 330, 350, 384, 400, 420, 640, 1100, 3000]  # fmt: skip


@pytest.fixture(scope="module")
def batch(smollm2_short: Path) -> list[list[int]]:
    return prompts(smollm2_short, LENGTHS)


@pytest.fixture(scope="module")
def expected(smollm2_short: Path, batch: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """(greedy tokens, their log-probabilities) by transformers; kept on disk, since they never change."""
    facts = [batch, NEW_TOKENS, str(fingerprint(smollm2_short)), version("transformers"), version("torch")]
    path = CACHE / f"greedy-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        write_atomically(path, json.dumps(transformers_greedy(smollm2_short, batch)).encode())
    return [(tokens, values) for tokens, values in json.loads(path.read_text())]


def transformers_greedy(model_dir: Path, batch: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    results = []
    for prompt in batch:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([prompt]),
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=[-1],
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = out.sequences[0, len(prompt) :].tolist()
        values = [
            torch.log_softmax(step[0].double(), -1)[token].item()
            for step, token in zip(out.logits, tokens, strict=True)
        ]
        results.append((tokens, values))
    return results


@pytest.mark.parametrize("tp_size", [1, 2, 3])
def test_same_tokens_as_transformers(
    tp_size: int,
    smollm2_short: Path,
    smollm2_short_padded: Path,
    batch: list[list[int]],
    expected: list[tuple[list[int], list[float]]],
    tmp_path: Path,
) -> None:
    model = smollm2_short_padded if tp_size == 2 else smollm2_short
    plan = random_plan(model, tp_size, tmp_path / "dense.plan.safetensors", dense=True)
    assert plan.permutes
    flags = ["--enable-shplb", "--shplb-plan", str(tmp_path / "dense.plan.safetensors")]
    with server(model, tmp_path / "server.log", tp_size, *flags) as running:
        running.wait_ready()
        # Two waves: batches of several requests, then prompts that share a start with a finished one.
        first = [index for index in range(len(batch)) if index % 3 != 2]
        second = [index for index in range(len(batch)) if index % 3 == 2]
        answers: dict[int, dict[str, object]] = {}
        for wave in (first, second):
            answers |= dict(zip(wave, greedy(running, [batch[index] for index in wave]), strict=True))
        state = running.shplb_state()
    assert state["dense_steps"] > 0
    assert state["plan_hash"] == plan.hash
    hits = sum(answers[index]["meta_info"]["cached_tokens"] > 0 for index in second)
    assert hits >= 3
    for index, (tokens, values) in enumerate(expected):
        found = answers[index]["meta_info"]["output_token_logprobs"]
        assert [token for _, token, _ in found] == tokens, f"prompt {index} of {len(batch[index])} tokens"
        assert [value for value, _, _ in found] == pytest.approx(values, abs=1e-3)
