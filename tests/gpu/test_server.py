# SPDX-License-Identifier: Apache-2.0
"""The real server on real weights: budgets of 1.0 answer like stock SGLang, and nothing is lost under pressure.

Every prompt takes the sparse path here, whether or not it would be faster. Server starts are what costs time, so tests
share servers, and each of them checks the shutdown of its server, too.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from near_tie import check_near_ties, partings
from real_server import RETRACTION, Answer, ask, count_retracted, serving, used_tokens, wait_until_idle
from scenario import CACHE, prompts, random_plan
from setting import SETTING, is_trial
from traffic import Exchange, Texts, make_clients, send_all

from shplb.sglang.launch import Server
from shplb.sparsity import PAGE_SIZE

pytestmark = pytest.mark.server

EDGES = [1, 2, 63, 64, 65, 191, 192, 193, 385, 640]
EQUAL_SHARE = 0.98
# Of answers to mixed requests this many are asked for again, alone; each costs a request's whole time.
ALONE = SETTING.num_requests // 4
PRESSURE = [
    "--max-total-tokens", str(SETTING.pool_tokens), "--enable-mixed-chunk", "--schedule-conservativeness", "0.1",
]  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2], ids=["tp1", "tp2"])
def tp_size(request: pytest.FixtureRequest) -> int:
    size = int(request.param)
    if not is_trial() and torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    return size


def model_for(tp_size: int, request: pytest.FixtureRequest) -> Path:
    """SmolLM2, with a fourth KV group of zeros where it has to split over two ranks."""
    if is_trial():
        return Path(request.getfixturevalue("smollm2_short" if tp_size == 1 else "smollm2_short_padded"))
    from shplb.hf.gguf import convert_smollm2
    from shplb.hf.padding import pad_kv_groups

    model = convert_smollm2(CACHE / "smollm2-bfloat16", dtype="bfloat16")
    return model if tp_size == 1 else pad_kv_groups(model, CACHE / "smollm2-bfloat16-padded", 4)


@pytest.fixture(scope="module")
def model(tp_size: int, request: pytest.FixtureRequest) -> Path:
    return model_for(tp_size, request)


@pytest.fixture(scope="module")
def batch(model: Path) -> list[list[int]]:
    """Prompts of real text; a third of them begin like the one before."""
    spread = np.geomspace(4, SETTING.longest_tokens, SETTING.num_prompts - len(EDGES)).astype(int).tolist()
    lengths = [*EDGES, *spread][: SETTING.num_prompts]
    return prompts(model, np.random.default_rng(1).permutation(lengths).tolist())


def stock_answers(model: Path, batch: list[list[int]], log: Path, tp_size: int, *options: str) -> list[Answer]:
    """Answers of stock SGLang to prompts sent one at a time."""
    all_options = [*SETTING.options, *SETTING.equal_options, *options]
    with serving(model, log, *all_options, tp_size=tp_size) as running:
        return [ask(running, prompt, SETTING.new_tokens) for prompt in batch]


@pytest.fixture(scope="module")
def stock(tp_size: int, model: Path, batch: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    return stock_answers(model, batch, tmp_path_factory.mktemp("stock") / "log", tp_size)


@pytest.fixture(scope="module")
def dense(stock: object, tp_size: int, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S-HPLB with budgets of 1.0 and heads moved in every layer; stock's server has ended before."""
    folder = tmp_path_factory.mktemp("dense")
    plan = folder / "plan.safetensors"
    assert random_plan(model, tp_size, plan, dense=True).permutes
    options = [*SETTING.options, *SETTING.equal_options, *PRESSURE]
    with serving(model, folder / "log", *options, plan=plan, tp_size=tp_size, forced=True, env=RETRACTION) as running:
        yield running


@pytest.fixture(scope="module")
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S-HPLB with budgets between 0.05 and 0.9, on one GPU."""
    folder, model = tmp_path_factory.mktemp("mixed"), model_for(1, request)
    random_plan(model, 1, folder / "plan.safetensors", dense=False)
    options = [*SETTING.options, *PRESSURE]
    with serving(
        model, folder / "log", *options, plan=folder / "plan.safetensors", forced=True, env=RETRACTION
    ) as running:
        yield running


def test_dense_budgets_give_the_tokens_of_stock(
    stock: list[Answer], dense: Server, model: Path, batch: list[list[int]], tp_size: int, tmp_path: Path
) -> None:
    """At least 98 of 100 answers are stock's, or as many as another attention backend of stock gives at this dtype."""
    before = dense.shplb_state()
    assert before["path"] == "sparse"
    answers = [ask(dense, prompt, SETTING.new_tokens) for prompt in batch]
    after = dense.shplb_state()
    assert all(len(answer.tokens) == SETTING.new_tokens for answer in answers)
    assert after["sparse_steps"] - before["sparse_steps"] >= sum(len(prompt) > 1 for prompt in batch)
    assert after["computed_row_pages"] == after["causal_row_pages"]
    found = partings(stock, answers)
    print(f"{len(found)} of {len(batch)} answers part from stock's", *found, sep="\n")
    check_near_ties(found, SETTING.near_tie)
    if len(found) > (1 - EQUAL_SHARE) * len(batch):
        pool = ["--max-total-tokens", str(SETTING.pool_tokens)]  # beside the server that runs
        other = stock_answers(model, batch, tmp_path / "log", tp_size, *pool, *SETTING.other_stock_options)
        control = partings(stock, other)
        print(f"{len(control)} answers of stock with {SETTING.other_stock_options} part from those of its own choice")
        assert len(found) <= len(control) + 2 * math.sqrt(len(control))


def run_traffic(running: Server, model: Path, seed: int) -> list[Exchange]:
    """Mixed requests at once; every one that was not given up is answered in full, and no page of the pool is lost."""
    texts = Texts(model, SETTING.longest_tokens, seed)
    clients = make_clients(texts, SETTING.num_requests, SETTING.longest_tokens, SETTING.long_answer_tokens)
    running.flush_cache()
    before = running.shplb_state()
    exchanges = send_all(running, clients, SETTING.concurrency)
    wait_until_idle(running)
    after = running.shplb_state()
    assert len(exchanges) == sum({"chat": 2, "aborted": 0, "hung up": 0}.get(client.kind, 1) for client in clients)
    for sent in exchanges:
        assert (sent.answer.finish, len(sent.answer.tokens)) == ("length", sent.new_tokens)
        assert sent.answer.prompt_tokens == len(sent.prompt)
    assert used_tokens(running) == 0
    assert after["sparse_steps"] > before["sparse_steps"]
    print(f"{count_retracted(running)} requests were retracted")
    assert count_retracted(running) > 0
    return exchanges


def alone(running: Server, exchanges: list[Exchange]) -> tuple[list[Answer], list[Answer]]:
    """(answers to some of the requests sent alone to an empty cache, their answers in the crowd)."""
    chosen = np.random.default_rng(2).permutation(len(exchanges))[:ALONE].tolist()
    again = []
    for index in chosen:
        running.flush_cache()
        again.append(ask(running, exchanges[index].prompt, exchanges[index].new_tokens))
    return again, [exchanges[index].answer for index in chosen]


def test_dense_budgets_answer_in_a_crowd_as_alone(dense: Server, model: Path) -> None:
    again, crowd = alone(dense, run_traffic(dense, model, seed=3))
    found = partings(again, crowd)
    print(f"{len(found)} of {len(again)} answers part from those to the same prompts sent alone")
    print("\n".join(map(str, found)))
    check_near_ties(found, SETTING.near_tie)


def test_mixed_budgets_lose_nothing_in_a_crowd(mixed: Server, request: pytest.FixtureRequest) -> None:
    """Chunks cut query blocks elsewhere in a crowd, so answers may differ from those alone, but not in most places."""
    again, crowd = alone(mixed, run_traffic(mixed, model_for(1, request), seed=4))
    assert mixed.shplb_state()["density"] < 0.95
    same = sum(a.tokens[0] == b.tokens[0] for a, b in zip(again, crowd, strict=True))
    print(f"{same} of {len(again)} answers begin as alone")
    assert same >= 0.7 * len(again)
    assert all(math.isfinite(value) for answer in again for step in answer.top for value in step.values())
    repeated = sum(len(set(answer.tokens)) == 1 for answer in crowd if len(answer.tokens) > 8)
    assert repeated <= 0.05 * len(crowd)


def test_conversation_over_a_recycled_pool(mixed: Server, request: pytest.FixtureRequest) -> None:
    texts = Texts(model_for(1, request), SETTING.longest_tokens, seed=5)
    opening, second = texts.piece(SETTING.longest_tokens // 2), texts.piece(SETTING.longest_tokens // 4)

    def converse() -> tuple[Answer, Answer]:
        first = ask(mixed, opening, 16)
        return first, ask(mixed, opening + first.tokens + second, 16)

    mixed.flush_cache()
    once = converse()
    filled = 0
    while filled < 2 * SETTING.pool_tokens:
        filled += ask(mixed, texts.piece(SETTING.longest_tokens // 2), 4).prompt_tokens
    again = converse()
    assert [answer.cached_tokens for answer in again] == [answer.cached_tokens for answer in once]
    assert again[0].cached_tokens == 0
    assert again[1].cached_tokens >= len(opening) // PAGE_SIZE * PAGE_SIZE
    assert [answer.tokens for answer in again] == [answer.tokens for answer in once]
