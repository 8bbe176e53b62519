# SPDX-License-Identifier: Apache-2.0
"""Scores and choices in torch against their definitions, written here as loops over tokens."""

import math

import pytest
import torch

from shplb.kernels.lines import LAST_QUERIES, Lines
from shplb.kernels.scores import key_vectors, page_scores
from shplb.kernels.selection import RequestPages
from shplb.policies import CHOICES, SCORES, Policy
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages

DIM, GROUP, KV_HEADS = 8, 2, 2
RULE = SparsityRule(query_block=128, dense_below_tokens=0)
SCALE = DIM**-0.5
Weights = dict[tuple[int, int], float]


def rule_of(score: str, choice: str = "top_k", coverage: float = 0.9) -> SparsityRule:
    return Policy("uniform", score, choice, coverage).rule(RULE)


def tensors(prefix: int, new: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(new, GROUP * KV_HEADS, DIM, generator=generator) * 3
    return q, torch.randn(prefix + new, KV_HEADS, DIM, generator=generator)


def causal_mass(q: torch.Tensor, k: torch.Tensor, first_row: int) -> torch.Tensor:
    """float64 [rows, pages]: attention mass of one head."""
    logits = q.double() @ k.double().T * SCALE
    future = torch.arange(len(k))[None] > torch.arange(first_row, first_row + len(q))[:, None]
    mass = torch.softmax(logits.masked_fill(future, -math.inf), dim=-1)
    return torch.stack([part.sum(dim=1) for part in mass.split(PAGE_SIZE, dim=1)], dim=1)


def by_definition(score: str, q: torch.Tensor, k: torch.Tensor, first_row: int) -> torch.Tensor:
    """float64 [pages] of one head: softmax over keys (runs, pages) of every row (run), averaged, summed per page."""
    end_row = first_row + len(q)
    if score == "oracle":
        return causal_mass(q, k[:end_row], first_row).mean(dim=0)
    stride, scores = SCORES[score].stride, torch.zeros(num_pages(end_row), dtype=torch.float64)
    runs = range(first_row // stride, (end_row - 1) // stride + 1)
    for run in runs:
        rows = [row for row in range(run * stride, (run + 1) * stride) if first_row <= row < end_row]
        logits, pages = [], []
        unit = PAGE_SIZE if score == "min_max" else stride
        for start in range(0, run * stride + 1, unit):
            keys = list(range(start, min(start + unit, end_row)))
            logits.append(_logit(score, q, k, first_row, rows, keys, run * stride, start))
            pages.append(start // PAGE_SIZE)
        for page, weight in zip(pages, torch.softmax(torch.tensor(logits, dtype=torch.float64), 0), strict=True):
            scores[page] += weight / len(runs)
    return scores


def _logit(
    score: str, q: torch.Tensor, k: torch.Tensor, first_row: int, rows: list[int], keys: list[int], run_start: int,
    key_start: int,
) -> float:  # fmt: skip
    own = [q[row - first_row].double() for row in rows]
    if score == "min_max":
        mean = torch.stack(own).mean(dim=0)
        extremes = torch.stack([k[keys].double().amax(dim=0), k[keys].double().amin(dim=0)])
        return float((mean * extremes).amax(dim=0).sum() * SCALE)
    stride = SCORES[score].stride
    total = 0.0
    for row in rows:
        key = key_start + stride - 1 - (row - run_start)  # the antidiagonal
        if key in keys:
            total += float(q[row - first_row].double() @ k[key].double())
    return total * SCALE / stride


@pytest.mark.parametrize("score", ["antidiagonal_8", "antidiagonal_16", "min_max", "oracle"])
@pytest.mark.parametrize(("first_row", "rows"), [(0, 128), (256, 100), (133, 123)])
def test_scores_equal_their_definition(score: str, first_row: int, rows: int) -> None:
    q, k = tensors(first_row, rows, seed=rows)
    rule = rule_of(score)
    found = page_scores(q, key_vectors(k, rule), first_row, SCALE, rule)
    for head in range(GROUP * KV_HEADS):
        expected = by_definition(score, q[:, head], k[:, head // GROUP], first_row)
        torch.testing.assert_close(found[head].double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("score", list(SCORES))
def test_scores_share_out_the_mass_and_see_no_future(score: str) -> None:
    q, k = tensors(700, 68)
    rule = rule_of(score)
    found = page_scores(q[:20], key_vectors(k, rule), 700, SCALE, rule)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(GROUP * KV_HEADS))
    changed = k.clone()
    changed[720:] += 100.0  # beyond the rows that are scored, in a page of its own: 700..719 end within page 11
    changed[720:768] = k[720:768]
    torch.testing.assert_close(page_scores(q[:20], key_vectors(changed, rule), 700, SCALE, rule), found)


def test_a_bound_is_one() -> None:
    q, k = tensors(512, 1)
    vectors = key_vectors(k, rule_of("min_max"))
    for head in range(GROUP * KV_HEADS):
        own, keys = q[0, head], k[:, head // GROUP]
        positive_negative = torch.cat([own.clamp_min(0), own.clamp_max(0)])
        bound = vectors[head // GROUP] @ positive_negative
        largest = torch.stack([(part @ own).max() for part in keys.split(PAGE_SIZE)])
        assert torch.all(bound >= largest - 1e-4)


def test_top_p_keeps_the_fewest_pages_that_hold_the_coverage() -> None:
    q, k = tensors(1100, 128, seed=3)
    rule = rule_of("oracle", "top_p", 0.8)
    pages, scores = RequestPages(rule, q, k, 1100, SCALE).choose(1100, 1152, [5] * 4)
    visible = num_pages(1152)
    for head, kept in enumerate(pages):
        mass = causal_mass(q[:52, head], k[:1152, head // GROUP], 1100).mean(dim=0)
        forced = {0, *range(1100 // PAGE_SIZE - 1, visible)}
        others = sorted(set(range(visible)) - forced, key=lambda page, mass=mass: -mass[page])  # type: ignore[misc]
        expected, rest = set(forced), list(others)
        while mass[sorted(expected)].sum() < 0.8 or len(expected) < rule.floor_pages:
            expected.add(rest.pop(0))
        assert kept.tolist() == sorted(expected)
        assert scores[head].sum().item() == pytest.approx(1.0, abs=1e-4)
    assert len({len(kept) for kept in pages}) > 1, "heads that need the same number test little"


def test_top_p_leaves_alone_what_is_not_its_own() -> None:
    q, k = tensors(640, 64)
    rule = rule_of("mean_pool", "top_p", 0.1)
    whole = RequestPages(rule, q, k, 640, SCALE, whole=True).choose(640, 704, [11, 11, 0, 11])[0]
    assert [len(kept) for kept in whole] == [11, 11, 0, 11]
    pages = RequestPages(rule, q, k, 640, SCALE).choose(640, 704, [11, 0, 11, 0])[0]
    assert [len(kept) > 0 for kept in pages] == [True, False, True, False]


def test_a_shape_is_the_sink_and_the_latest() -> None:
    q, k = tensors(640, 128)
    pages, _ = RequestPages(rule_of("mean_pool", "a_shape"), q, k, 640, SCALE).choose(640, 768, [6, 4, 12, 0])
    assert [kept.tolist() for kept in pages] == [[0, 7, 8, 9, 10, 11], [0, 9, 10, 11], list(range(12)), []]


def test_lines_hold_the_mass_of_the_last_queries() -> None:
    prefix, new = 330, 200
    q, k = tensors(prefix, new, seed=4)
    lines, tokens = Lines(q, k, SCALE), prefix + new
    first = tokens - LAST_QUERIES
    for head in range(GROUP * KV_HEADS):
        mass = causal_mass(q[first - prefix :, head], k[:, head // GROUP], first) / LAST_QUERIES
        torch.testing.assert_close(lines.columns[head].double(), mass.sum(dim=0), atol=1e-6, rtol=1e-4)
        diagonals = torch.zeros(num_pages(tokens), dtype=torch.float64)
        for index, row in enumerate(range(first, tokens)):
            for page in range(row // PAGE_SIZE + 1):
                diagonals[row // PAGE_SIZE - page] += mass[index, page]
        torch.testing.assert_close(lines.diagonals[head].double(), diagonals, atol=1e-6, rtol=1e-4)


def test_vertical_slash_scores_add_columns_and_diagonals() -> None:
    q, k = tensors(0, 500, seed=5)
    lines = Lines(q, k, SCALE)
    scores = lines.page_scores(torch.tensor([256]), torch.tensor([384]), 128)[:, 0]
    for page in range(6):
        diagonals = sum(lines.diagonals[:, own - page] for own in (4, 5) if own >= page) / 2
        torch.testing.assert_close(scores[:, page], lines.columns[:, page] + diagonals)
    pages, _ = RequestPages(rule_of("mean_pool", "vertical_slash"), q, k, 0, SCALE).choose(256, 384, [5] * 4)
    assert all({0, 3, 4, 5} < set(kept.tolist()) and len(kept) == 5 for kept in pages)


def test_a_column_that_all_queries_look_at_is_found() -> None:
    q, k = tensors(0, 1500, seed=6)
    direction = torch.ones(DIM)
    q[:, :, :] = direction
    k[5 * PAGE_SIZE + 3] = 10 * direction
    pages, _ = RequestPages(rule_of("mean_pool", "vertical_slash"), q, k, 0, SCALE).choose(1280, 1408, [6] * 4)
    assert all(5 in kept.tolist() for kept in pages)


@pytest.mark.parametrize("choice", list(CHOICES))
def test_forced_pages_are_kept_whatever_the_choice(choice: str) -> None:
    q, k = tensors(64, 900, seed=7)
    chooser = RequestPages(rule_of("mean_pool", choice), q, k, 64, SCALE)
    for first, end in ((64, 128), (512, 640), (896, 964)):
        sink_end, first_local = RULE.forced_pages(first, end)
        forced = {*range(sink_end), *range(first_local, num_pages(end))}
        keep = [max(len(forced), 4)] * 4
        for kept in chooser.choose(first, end, keep)[0]:
            assert forced <= set(kept.tolist())
            assert kept.tolist() == sorted(set(kept.tolist()))
