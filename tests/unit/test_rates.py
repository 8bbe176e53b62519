# SPDX-License-Identifier: Apache-2.0
"""Rates are found again from times made of them, kept in files, and decide where sparse begins to pay."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from shplb.container import FileFormatError
from shplb.planner import CostModel, StepPlanner
from shplb.rates import GpuRates, Sample, default_cost, errors, fields_of, fit, predict, rates_name
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule, num_pages, visible_pages

CTAS, HEADS, KV_HEADS, TILE = 132, 16, 4, 96
TRUE = CostModel(
    item_ns=700, kv_tile_ns=1500, dense_kv_tile_ns=1400, select_pair_ps=90, select_block_ps=20_000, pool_page_ps=7_000,
    layer_ns=60_000,
)  # fmt: skip


def sample(prefix: int, new: int, density: float, noise: float) -> Sample:
    """A step whose times follow from TRUE; launches of 30, 50 and 20 us make its layer_ns."""
    ends = np.minimum(np.arange(prefix // 128 * 128 + 128, prefix + new + 128, 128), prefix + new)
    visible = -(-ends // PAGE_SIZE)
    tiles = -(-np.ceil(visible * density).astype(int) * PAGE_SIZE // TILE)
    made = Sample(
        prefix=prefix, new=new, density=density, items=HEADS * len(ends), kv_tiles=HEADS * int(tiles.sum()),
        longest_kv_tiles=int(tiles.max()), dense_items=HEADS * len(ends),
        dense_kv_tiles=HEADS * int((-(-visible * PAGE_SIZE // TILE)).sum()), head_blocks=HEADS * len(ends),
        head_pairs=HEADS * visible_pages(prefix, new, 128), kv_pages=KV_HEADS * num_pages(prefix + new),
        attention_ns=0, selection_ns=0, dense_ns=0,
    )  # fmt: skip
    sparse, dense = predict(TRUE, made, CTAS)
    work = max((700 * made.items + 1500 * made.kv_tiles) / CTAS, 700 + 1500 * made.longest_kv_tiles)
    return msgspec.structs.replace(
        made, attention_ns=round((work + 30_000) * noise), dense_ns=round((dense + 20_000) * noise),
        selection_ns=round((sparse - TRUE.layer_ns - work + 50_000) * noise),
    )  # fmt: skip


def samples(noise: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(1)
    steps = [(0, 4096), (0, 8192), (0, 16384), (0, 32768), (24576, 8192), (122880, 8192), (122880, 512), (65536, 2048)]
    return [sample(*step, density, 1 + noise * rng.standard_normal()) for step in steps for density in (0.1, 0.4, 0.8)]


def test_true_rates_are_found_again() -> None:
    cost, launch_ns = fit(samples(), CTAS)
    found = fields_of(cost)
    assert launch_ns == pytest.approx(20_000, rel=0.01)
    for name, value in fields_of(TRUE).items():
        assert found[name] == pytest.approx(value, rel=0.01), name


def test_noise_moves_predictions_little() -> None:
    worst = errors(*fit(samples(0.03), CTAS), samples(), CTAS)
    assert worst["sparse"]["median"] < 0.05
    assert worst["sparse"]["worst"] < 0.15


def test_defaults_are_what_was_measured() -> None:
    measured = GpuRates.load(Path(__file__).parents[2] / "bench" / "results" / "rates.json")
    assert fields_of(CostModel()) == fields_of(fit(measured.samples, measured.num_ctas)[0]) == measured.cost
    worst = errors(measured.model, measured.launch_ns, measured.samples, measured.num_ctas)
    assert worst["sparse"]["worst"] < 0.11


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="samples fill the GPU, expected three or more"):
        fit([one for one in samples() if one.new == 512], CTAS)


def rates() -> GpuRates:
    cost, versions = fields_of(TRUE), {"torch": "2"}
    return GpuRates("NVIDIA H100", CTAS, "bfloat16", 128, 4, "fa3", cost, 20_000, samples()[:2], versions)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / rates_name("NVIDIA H100 80GB HBM3", "bfloat16", 128, 4, "fa3")
    assert path.name == "nvidia-h100-80gb-hbm3.bfloat16.d128.g4.fa3.json"
    rates().save(path)
    again = GpuRates.load(path)
    assert again == rates()
    assert fields_of(again.model) == fields_of(TRUE)


@pytest.mark.parametrize("damage", ["", "{}", "half", "rate", "field", "format"])
def test_bad_files_are_one_sentence(tmp_path: Path, damage: str) -> None:
    path, text = tmp_path / "r.json", msgspec.json.encode(rates()).decode()
    broken = {
        "half": text[: len(text) // 2], "rate": text.replace('"kv_tile_ns":1500', '"kv_tile_ns":-5'),
        "field": text.replace("pool_page_ps", "pool"), "format": text.replace("GpuRates/1", "GpuRates/9"),
    }  # fmt: skip
    path.write_text(broken.get(damage, damage))
    with pytest.raises(
        FileFormatError, match=r"holds no usable GPU rates \(.*\); run `shplb calibrate` again\.$"
    ) as caught:
        GpuRates.load(path)
    assert "\n" not in str(caught.value)


def first_sparse(cost: CostModel) -> int:
    """Prompt tokens from which the planner of a real shape goes sparse, at density 0.1."""
    rule = SparsityRule(query_block=128)
    keep = BudgetTable(np.full((4, HEADS, 1), 0.1), np.array([PAGE_SIZE]), rule, 32768).pages
    slots = np.tile(np.arange(KV_HEADS, dtype=np.int32), (4, 1, 1))
    planner = StepPlanner(
        num_kv_heads=KV_HEADS, head_dim=128, keep_pages=keep, slot_groups=slots, rank=0, num_ctas=CTAS, cost=cost
    )
    lengths = range(256, 32768, 256)
    return next(n for n in lengths if planner.predict(np.array([0]), np.array([n])).sparse[0])


def test_dearer_selection_and_cheaper_dense_move_the_crossover_up() -> None:
    usual = first_sparse(default_cost("fa3"))
    for name, factor in (
        ("layer_ns", 2.0),
        ("select_pair_ps", 100.0),
        ("pool_page_ps", 10.0),
        ("dense_kv_tile_ns", 0.7),
    ):
        fields = fields_of(default_cost("fa3"))
        fields[name] = round(fields[name] * factor)
        assert first_sparse(CostModel(**fields)) > usual, name
    assert first_sparse(default_cost("flashinfer")) < usual
