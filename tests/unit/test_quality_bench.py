# SPDX-License-Identifier: Apache-2.0
"""The quality bench without a server: variants, what is sent and kept, rows, tables, chart and regressions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quality_chart
import quality_tables
import readme_tables
from long_tasks import Materials
from quality.arguments import arguments
from quality.fleet import sample_all
from quality.regression import regressions, unlike_stock
from quality.rows import chosen_densities, row_of, table_of
from quality.sampling import Sample, take_sample, time_prompts
from quality.variants import Variant, parse_variant, plan_at
from quality.workload import MULTI_TURN, Amounts, Workload, make_workload
from synthetic import is_one_sentence, make_profile, make_serving_plan
from test_long_tasks import words

from shplb.policies import BUDGETS
from shplb.quality.measurement import WINDOW

TOKENS = 1024


@pytest.fixture(scope="module")
def workload() -> Workload:
    tasks = ["niah_single_1", "niah_multivalue", "cwe", MULTI_TURN]
    return make_workload(TOKENS, tasks, Amounts(2, 2, 2, seed=1), words, Materials.shipped())


class FakeServer:
    """Answers as SGLang's native API does: ``knows`` replies by prompt, a fixed NLL, and counters."""

    def __init__(self, workload: Workload, right: bool = True, nll: float = 2.0) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.flushes = 0
        self.log = Path("server.log")
        self.right, self.nll = right, nll
        self.answers = {
            tuple(each.token_ids): " ".join(each.message.answers) for own in workload.examples.values() for each in own
        }
        self.talks = {tuple(talk.token_ids(words, [])): talk for talk in workload.conversations}

    def post(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert path == "/generate"
        assert body["sampling_params"]["temperature"] == 0.0
        self.bodies.append(body)
        if body.get("return_logprob"):
            (tokens,) = body["input_ids"]
            start = body["logprob_start_len"]
            found = [[None if i == start else -self.nll, token, None] for i, token in enumerate(tokens) if i >= start]
            return [{"text": "", "meta_info": {"input_token_logprobs": found}}]
        return [self._reply(tuple(tokens)) for tokens in body["input_ids"]]

    def _reply(self, tokens: tuple[int, ...]) -> dict[str, Any]:
        begun = next((talk for start, talk in self.talks.items() if tokens[: len(start) - 1] == start[:-1]), None)
        said = self.answers.get(tokens, "") if begun is None else " ".join(begun.answers)
        meta = {"cached_tokens": 64, "prompt_tokens": len(tokens)}
        return {"text": said if self.right else "no idea", "meta_info": meta}

    def flush_cache(self) -> None:
        self.flushes += 1

    def shplb_state(self) -> dict[str, int]:
        calls = len(self.bodies)
        pages = {"computed_row_pages": 30 * calls, "causal_row_pages": 100 * calls}
        return {"sparse_steps": calls, "dense_steps": 0} | pages


def test_workload(workload: Workload) -> None:
    assert list(workload.examples) == ["niah_single_1", "niah_multivalue"]
    (left_out,) = workload.left_out
    assert left_out.startswith("cwe at 1024 tokens")
    assert len(workload.conversations) == 2
    assert [len(text.token_ids) for text in workload.texts] == [TOKENS - WINDOW] * 2
    assert len({text.domain for text in workload.texts}) == 2
    assert [len(prompt) for prompt in workload.timed] == [TOKENS - WINDOW] * 3
    assert len({tuple(prompt) for prompt in workload.timed}) == 3


def test_a_sample_holds_scores_nll_and_path(workload: Workload) -> None:
    server = FakeServer(workload)
    sample = take_sample(server, workload, words, sparse=True)  # type: ignore[arg-type]
    assert sample.scores == {"niah_single_1": [1.0] * 2, "niah_multivalue": [1.0] * 2, MULTI_TURN: [1.0] * 2}
    assert {name: len(values) for name, values in sample.nll.items()} == {text.name: 2 for text in workload.texts}
    assert all(value == 2.0 for values in sample.nll.values() for value in values)
    assert sample.path == {"sparse_steps": len(server.bodies), "dense_steps": 0, "density": 0.3}
    assert sample.cached_tokens[0] == 2 * 2 * 64
    assert sample.cached_tokens[1] > 4 * (TOKENS - 400)
    batches = [len(body["input_ids"]) for body in server.bodies]
    assert batches == [2, 2, *[1] * 6, *[1] * 2], "tasks in one request, turns and texts alone"
    assert server.bodies[0]["sampling_params"]["max_new_tokens"] == 128
    wrong = take_sample(FakeServer(workload, right=False), workload, words, sparse=False)  # type: ignore[arg-type]
    assert {score for scores in wrong.scores.values() for score in scores} == {0.0}
    assert wrong.path == {}


def test_prompts_are_timed_alone_and_uncached(workload: Workload) -> None:
    server = FakeServer(workload)
    found = time_prompts(server, workload.timed)  # type: ignore[arg-type]
    assert len(found) == 2
    assert all(ms > 0 for ms in found)
    assert server.flushes == len(server.bodies) == 3
    assert {body["sampling_params"]["max_new_tokens"] for body in server.bodies} == {1}


def sample_of(score: float, nll: float, density: float | None = None) -> Sample:
    path = {} if density is None else {"sparse_steps": 3, "dense_steps": 0, "density": density}
    scores = {"a": [score] * 300, "b": [score] * 300, "c": [0.1] * 300}
    return Sample(scores, {}, {"text": [nll] * 20}, path=path, ttft_ms=[9.0, 7.0])


@pytest.fixture
def result() -> dict[str, Any]:
    dense, plan = sample_of(1.0, 2.0), make_serving_plan()
    rows = [row_of(Variant("dense"), None, 4096, dense, dense)]
    for name, sample in {"min_error@0.3": sample_of(1.0, 2.005, 0.3), "uniform@0.2": sample_of(0.98, 2.3, 0.2)}.items():
        rows.append(row_of(parse_variant(name), plan, 4096, sample, dense))
    facts = {"model": "m", "device": "d", "format": 3, "tokens": [4096], "prompts_per_task": 300}
    return json.loads(json.dumps(facts | {"texts": {4096: ["text"]}, "text_tokens": {4096: 3840}, "rows": rows}))


def test_rows_and_choice(result: dict[str, Any]) -> None:
    dense, good, bad = result["rows"]
    assert dense["counted_tasks"] == ["a", "b"]
    assert good["verdict"]["meets"]
    assert good["verdict"]["proven"]
    assert good["nll_over_dense_percent"]["value"] == pytest.approx(0.25)
    assert good["ttft_ms"] == 8.0
    assert not bad["verdict"]["meets"]
    assert bad["mean_delta"]["value"] == pytest.approx(-2.0)
    assert set(bad["task_deltas"]) == {"a", "b"}
    assert chosen_densities(result["rows"]) == {"4096": "min_error@0.3"}
    assert chosen_densities([dense, bad]) == {"4096": "dense"}
    table = table_of(result["rows"])
    assert [line[-1] for line in table] == ["rule", "", "met, proven", "not met"]
    assert len({len(line) for line in table}) == 1


def test_several_ranks_are_compared_with_one() -> None:
    dense, twin, own = sample_of(1.0, 2.0), sample_of(0.995, 2.01, 0.3), sample_of(0.99, 2.02, 0.3)
    twin.replies, own.replies = {"a": ["x", "y"]}, {"a": ["x", "z"]}
    row = row_of(parse_variant("min_error@0.3:tp2"), make_serving_plan(), 4096, own, dense, twin)
    assert row["same_replies"] == 0.5
    assert row["mean_over_one_rank"]["value"] == pytest.approx(-0.5)
    assert row["nll_over_one_rank_percent"]["value"] == pytest.approx(100 * (2.02 / 2.01 - 1), abs=1e-5)
    assert row["mean_delta"]["value"] == pytest.approx(-1.0)
    single = row_of(parse_variant("min_error@0.3"), make_serving_plan(), 4096, twin, dense)
    assert "same_replies" not in single
    assert [quality_tables.variant_name(each) for each in (single, row)] == [
        "least output error (default)", "least output error (default), 2 ranks",
    ]  # fmt: skip
    assert set(quality_chart.series_of([single, row])) == {"min_error", "min_error, 2 ranks"}


def test_readme_table_and_chart_of_a_result(result: dict[str, Any]) -> None:
    table = quality_tables.quality_table(result).splitlines()
    assert table[2].startswith("| 4096 tokens: dense (stock SGLang) | 1 | scores 100.0 in 2 of 3 tasks |")
    assert "| 4096 tokens: least output error (default) | 0.300 | +0.00 [+0.00, +0.00] |" in table[3]
    assert table[4].endswith("+15.00 % [+15.00, +15.00] | not met | 8 ms |")
    assert len({line.count("|") for line in table}) == 1
    svg = quality_chart.chart(result)
    assert svg == quality_chart.chart(result)
    for text in (b"min_error", b"uniform", b"NLL over dense", b"4096 tokens"):
        assert text in svg
    longer = [row | {"tokens": 8192, "ttft_ms": None} for row in result["rows"]]
    both = quality_chart.chart(result, result | {"rows": longer})
    assert b"8192 tokens" in both
    assert both.count(b"time to first token") == 1, "of the length that was timed"
    assert b"dense (stock SGLang)" in both
    assert "| 8192 tokens: uniform |" in quality_tables.quality_table(result, result | {"rows": longer})


def test_trade_puts_predicted_times_beside_quality(result: dict[str, Any]) -> None:
    rows = [row | {"name": f"shplb@{density}"} for row, density in zip(result["rows"][1:], (0.1, 0.2), strict=True)]
    times = [{"density": 0.1, "predicted_ms": 25.0}, {"density": 0.35, "predicted_ms": 40.0}]
    prompt = {"prompt_tokens": 126000, "stock_ms": 50.0, "rows": times}
    table = quality_tables.trade_table({"longest_prompt": prompt}, result | {"rows": rows}).splitlines()
    assert len(table) == 4
    assert table[3].startswith("| 0.1 | 25 ms | 2.00 | +0.25 % [")
    assert len({line.count("|") for line in table}) == 1


def test_regressions(result: dict[str, Any]) -> None:
    same = json.loads(json.dumps(result))
    assert regressions(result, same) == []
    same["rows"][1]["nll_over_dense_percent"]["value"] = 0.3
    same["rows"][2]["mean_delta"]["value"] = -2.1
    found = regressions(same, result)
    assert [each.split(":")[0] for each in found] == ["min_error@0.3 at 4096 tokens", "uniform@0.2 at 4096 tokens"]
    assert all(is_one_sentence(each) for each in found)
    del same["rows"][2]
    assert regressions(same, result)[-1] == "the reference has uniform@0.2 at 4096 tokens, and the result has not."
    with pytest.raises(ValueError, match="differ in prompts_per_task"):
        regressions(result | {"prompts_per_task": 2}, result)


def test_density_one_must_be_stock() -> None:
    dense, plan = sample_of(1.0, 2.0), plan_at(make_profile(), BUDGETS["min_error"], 1.0, 4096)
    for sample, complaints in ((sample_of(1.0, 2.0005, 1.0), 0), (sample_of(0.9, 2.01, 1.0), 2)):
        rows = [row_of(Variant("dense"), None, 4096, dense, dense)]
        rows.append(row_of(parse_variant("min_error@1"), plan, 4096, sample, dense))
        found = unlike_stock({"rows": rows})
        assert len(found) == complaints
        assert all(is_one_sentence(each) for each in found)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments("", ["--model-path", "m", "--variants", "min_error@0.1", "--tokens", "8192,4096"])
    assert [variant.name for variant in args.variants] == ["dense", "min_error@0.1"], "stock comes first"
    assert args.tokens == [4096, 8192]
    ranks = arguments("", ["--model-path", "m", "--variants", "uniform@0.1:tp2"])
    assert [variant.name for variant in ranks.variants] == ["dense", "uniform@0.1", "uniform@0.1:tp2"]
    quick = arguments("", ["--quick", "--work", str(tmp_path)])
    assert quick.model_path.parent == tmp_path
    assert quick.amounts.prompts < args.amounts.prompts
    assert quick.profile.parent == tmp_path
    for wrong in (["--tasks", "poems"], ["--tokens", "many"], ["--variants", "fast"], ["--prompts", "0"]):
        with pytest.raises(SystemExit):
            arguments("", wrong)
        assert wrong[1] in capsys.readouterr().err.splitlines()[-1]


def test_answers_are_reported_as_they_come_and_again_when_timed(workload: Workload) -> None:
    servers = {name: FakeServer(workload) for name in ("dense", "shplb@0.1", "idle", "gone")}
    servers["idle"].shplb_state = lambda: dict.fromkeys(FakeServer(workload).shplb_state(), 0)  # type: ignore[method-assign]
    servers["gone"].post = broken  # type: ignore[method-assign, assignment]
    found: list[tuple[str, int]] = []
    failed: dict[str, str] = {}
    sample_all(
        servers, workload, words, "dense",  # type: ignore[arg-type]
        lambda name, sample: found.append((name, len(sample.ttft_ms))), failed.__setitem__,
    )  # fmt: skip
    assert sorted(found) == [("dense", 0), ("dense", 2), ("shplb@0.1", 0), ("shplb@0.1", 2)]
    assert set(failed) == {"idle", "gone"}
    assert "no step sparse" in failed["idle"]
    assert "server went away" in failed["gone"]


def broken(path: str, body: dict[str, Any]) -> None:
    raise OSError("the server went away")


def test_windows_leave_out_what_has_no_probability(workload: Workload) -> None:
    """The first entry is no number; the one after it is the first token of the first window."""
    server = FakeServer(workload)
    sample = take_sample(server, workload, words, sparse=False)  # type: ignore[arg-type]
    body = next(body for body in server.bodies if body.get("return_logprob"))
    assert body["logprob_start_len"] == (TOKENS - WINDOW) // 2 // WINDOW * WINDOW - 1
    assert np.isfinite(np.concatenate(list(sample.nll.values()))).all()


def test_the_chart_in_the_docs_is_of_the_result() -> None:
    root = Path(__file__).parents[2]
    results = [json.loads((root / "bench" / "results" / f"{name}.json").read_text()) for name in readme_tables.QUALITY]
    assert quality_chart.chart(*results) == (root / "docs" / "quality.svg").read_bytes()
