# SPDX-License-Identifier: Apache-2.0
"""Rates of one GPU: what a cost model is fitted to, and the file that keeps it.

GPU time of one layer is taken as a sum of constants and work counts, all known before the step starts:

- attention: a launch, ``item_ns`` per work item and ``kv_tile_ns`` per KV tile, of the mean CTA or of the longest item;
- dense attention of the base backend: a launch and ``dense_kv_tile_ns`` per KV tile, over the CTAs;
- selection: launches, and a rate per (head, block, page) scored, per (head, block) and per pooled (KV head, page).

Rates are never negative, so they are fitted by non-negative least squares (Lawson and Hanson, 1974). Errors count by
``time ** -0.75``: nearly relative, since the crossover lies among short steps, but a little more for long ones.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shplb.container import FileFormatError, write_atomically
from shplb.planner import CostModel

_FORMAT = "shplb.GpuRates/1"
_FIELDS = (
    "item_ns", "kv_tile_ns", "dense_kv_tile_ns", "select_pair_ps", "select_block_ps", "pool_page_ps", "layer_ns",
)  # fmt: skip
# An item this long may decide how long its step takes; such steps alone would say little about the sums.
_STARVED = 3
_MOST_FITS = 20
_MOST_NS = 100_000  # that the core takes as a rate


class Sample(msgspec.Struct, frozen=True):
    """One layer of one step on one rank, timed: work counts and GPU nanoseconds."""

    prefix: int
    new: int
    density: float
    items: int
    kv_tiles: int
    longest_kv_tiles: int
    dense_items: int
    dense_kv_tiles: int
    head_blocks: int  # (query head, query block)
    head_pairs: int  # (query head, query block, visible page)
    kv_pages: int  # (KV head, page of the context)
    attention_ns: int
    selection_ns: int
    dense_ns: int


class GpuRates(msgspec.Struct, frozen=True):
    """A fitted cost model and what it was fitted to."""

    gpu: str
    num_ctas: int
    dtype: str
    head_dim: int
    group_size: int
    base: str  # SGLang's attention backend for dense prefill
    cost: dict[str, int]
    launch_ns: int  # of a dense layer; the cost model holds what a sparse one takes beyond it
    samples: list[Sample]
    versions: dict[str, str]
    format: str = _FORMAT

    @property
    def model(self) -> CostModel:
        return CostModel(**self.cost)

    def save(self, path: Path) -> None:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "GpuRates":
        """FileFormatError in one sentence when the file can't be used."""
        try:
            rates = msgspec.json.decode(path.read_bytes(), type=cls)
            if rates.format != _FORMAT or set(rates.cost) != set(_FIELDS):
                raise ValueError(f"format {rates.format}")
            _ = rates.model
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} holds no usable GPU rates ({error}); run `shplb calibrate` again.") from None
        return rates


def rates_name(gpu: str, dtype: str, head_dim: int, group_size: int, base: str) -> str:
    """File name of the rates for this kind of GPU and attention."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{slug}.{dtype}.d{head_dim}.g{group_size}.{base}.json"


def fields_of(cost: CostModel) -> dict[str, int]:
    return {name: getattr(cost, name) for name in _FIELDS}


def default_cost(base: str, *, public: bool = False) -> CostModel:
    """Rates measured on an H200 at head_dim 128, four query heads to a KV head; ``base``: fa3 or flashinfer.

    Dense attention by flashinfer (fa2) takes nearly twice as long, launches as long as ours.
    public: lists run through FlashInfer's public wrapper, whose planning on the CPU (about 4 us per list) then decides.
    """
    if public:
        return CostModel(item_ns=_MOST_NS, kv_tile_ns=2377, dense_kv_tile_ns=2377, layer_ns=3_000_000)
    return CostModel(dense_kv_tile_ns=2377, layer_ns=0) if base == "flashinfer" else CostModel()


def fit(samples: list[Sample], num_ctas: int) -> tuple[CostModel, int]:
    """The cost model that fits the samples best, and launch_ns; ValueError if there are too few."""
    full = [s for s in samples if s.kv_tiles >= _STARVED * s.longest_kv_tiles * num_ctas]
    if len(full) < 3:
        raise ValueError(f"{len(full)} samples fill the GPU, expected three or more; use longer steps.")
    launch, item, tile = _fit_makespans(samples, num_ctas)
    dense_launch, dense_tile = _fit(
        [[1, s.dense_kv_tiles / num_ctas] for s in samples],
        [max(s.dense_ns - item * s.dense_items / num_ctas, 1.0) for s in samples],
    )
    select_launch, block, pair, page = _fit(
        [[1, s.head_blocks / 1e3, s.head_pairs / 1e3, s.kv_pages / 1e3] for s in samples],
        [s.selection_ns for s in samples],
    )
    cost = CostModel(
        item_ns=round(item),
        kv_tile_ns=max(round(tile), 1),
        dense_kv_tile_ns=max(round(dense_tile), 1),
        select_pair_ps=round(pair),
        select_block_ps=round(block),
        pool_page_ps=round(page),
        layer_ns=max(round(launch + select_launch - dense_launch), 0),
    )
    return cost, round(dense_launch)


def _fit_makespans(samples: list[Sample], num_ctas: int) -> list[float]:
    """Launch, item and tile ns of attention. Which of mean CTA and longest item a step waits for follows from the rates
    themselves, so they are fitted again until none changes sides."""
    times = [s.attention_ns for s in samples]
    mean = np.array([[1, s.items / num_ctas, s.kv_tiles / num_ctas] for s in samples])
    longest = np.array([[1, 1, s.longest_kv_tiles] for s in samples])
    starved = np.zeros(len(samples), dtype=bool)
    for _ in range(_MOST_FITS):
        rates = _fit(np.where(starved[:, None], longest, mean).tolist(), times)
        before, starved = starved, longest @ rates > mean @ rates
        if np.array_equal(before, starved):
            break
    return rates


def _fit(columns: list[list[float]], times: list[float] | list[int]) -> list[float]:
    return nonnegative_fit(columns, times, np.array(times, dtype=np.float64) ** -0.75)


def nonnegative_fit(columns: list[list[float]], times: list[float] | list[int], weights: np.ndarray) -> list[float]:
    """Non-negative least squares of ``columns`` [num_samples][num_rates] to ``times``, errors times ``weights``."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    found, _ = nnls(np.array(columns) * weights[:, None], np.array(times, dtype=np.float64) * weights)
    return [float(value) for value in found]


def predict(cost: CostModel, sample: Sample, num_ctas: int) -> tuple[float, float]:
    """(sparse, dense) ns of a layer, without launch_ns."""
    work = (cost.item_ns * sample.items + cost.kv_tile_ns * sample.kv_tiles) / num_ctas
    longest = cost.item_ns + cost.kv_tile_ns * sample.longest_kv_tiles
    select = cost.select_pair_ps * sample.head_pairs + cost.select_block_ps * sample.head_blocks
    select += cost.pool_page_ps * sample.kv_pages
    dense = (cost.item_ns * sample.dense_items + cost.dense_kv_tile_ns * sample.dense_kv_tiles) / num_ctas
    return cost.layer_ns + max(work, longest) + select / 1e3, dense


def errors(cost: CostModel, launch_ns: int, samples: list[Sample], num_ctas: int) -> dict[str, Any]:
    """Relative errors of predicted against measured layers, worst and median, sparse and dense."""
    found: dict[str, list[float]] = {"sparse": [], "dense": []}
    for sample in samples:
        sparse, dense = predict(cost, sample, num_ctas)
        found["sparse"].append(abs((sparse + launch_ns) / (sample.attention_ns + sample.selection_ns) - 1))
        found["dense"].append(abs((dense + launch_ns) / sample.dense_ns - 1))
    return {
        path: {"median": round(float(np.median(values)), 4), "worst": round(max(values), 4)}
        for path, values in found.items()
    }
