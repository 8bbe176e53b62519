# SPDX-License-Identifier: Apache-2.0
"""Where prompts are cut for their dense tails, against a rule stated block by block."""

from types import SimpleNamespace

import numpy as np
import pytest

from shplb.sglang.parts import Parts, RequestIds, cut_parts, note_prompt_lens, parts_of
from shplb.sparsity import SparsityRule


def rule(tail: int, block: int = 128) -> SparsityRule:
    return SparsityRule(query_block=block, dense_tail_tokens=tail)


@pytest.mark.parametrize("seed", range(20))
def test_a_token_is_dense_if_its_block_reaches_into_the_tail(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block, tail = int(rng.choice([128, 192])), int(rng.choice([0, 1, 100, 128, 500]))
    prefix, new, later = (rng.integers(low, 1500, 4).tolist() for low in (0, 1, -700))
    later[0] = later[2] = 0
    prompt_lens = [max(sum(lens), 1) for lens in zip(prefix, new, later, strict=True)]
    parts = cut_parts(prefix, new, prompt_lens, rule(tail, block))
    marks: list[list[bool]] = [[], [], [], []]
    for request, first, count, stock in zip(*parts, strict=True):
        assert first == prefix[request] + len(marks[request])
        marks[request] += [stock] * count
    for request, (first, count, length) in enumerate(zip(prefix, new, prompt_lens, strict=True)):
        dense = [tail > 0 and (row // block + 1) * block > length - tail for row in range(first, first + count)]
        assert marks[request] == dense


def test_a_prompt_in_chunks_is_cut_where_it_is_cut_as_a_whole() -> None:
    whole = cut_parts([0], [2000], [2000], rule(128))
    assert whole == Parts([0, 0], [0, 1792], [1792, 208], [False, True])
    assert cut_parts([0], [1900], [2000], rule(128)) == Parts([0, 0], [0, 1792], [1792, 108], [False, True])
    assert cut_parts([1900], [100], [2000], rule(128)) == Parts([0], [1900], [100], [True])


def test_what_was_generated_before_a_retraction_is_in_the_tail() -> None:
    assert cut_parts([0], [2700], [2000], rule(128)) == Parts([0, 0], [0, 1792], [1792, 908], [False, True])


def test_chosen_parts_of_one_request_are_one() -> None:
    parts = cut_parts([0, 0, 5], [2000, 300, 1], [2000, 300, 6], rule(128))
    assert parts.request == [0, 0, 1, 1, 2]
    assert parts.chosen([1, 2, 3, 4]) == Parts([0, 1, 2], [1792, 0, 5], [208, 300, 1], [True, False, True])


def test_the_scheduler_tells_how_long_prompts_are() -> None:
    requests = [SimpleNamespace(origin_input_ids=[1] * 3000), SimpleNamespace(origin_input_ids=[1] * 120)]
    batch = SimpleNamespace(reqs=requests, forward_mode=SimpleNamespace(is_extend=lambda: True))
    made = SimpleNamespace(rids=["a", "b"], extend_prefix_lens_cpu=[1000, 0], extend_seq_lens_cpu=[500, 120])
    assert parts_of(made, rule(64)) == Parts([0, 1], [1000, 0], [500, 120], [False, False])
    for on in (False, True):
        runner = SimpleNamespace(server_args=SimpleNamespace(enable_shplb=on))
        assert note_prompt_lens(made, object, batch, runner) is None
        assert isinstance(made.rids, RequestIds) == on
    assert (made.rids, made.rids.prompt_lens) == (["a", "b"], [3000, 120])
    assert parts_of(made, rule(64)) == Parts([0, 1], [1000, 0], [500, 120], [False, True])
