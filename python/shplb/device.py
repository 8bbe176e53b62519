# SPDX-License-Identifier: Apache-2.0
"""The GPU that times are predicted for."""

from dataclasses import dataclass, field
from pathlib import Path

from shplb.model import ModelShape
from shplb.plan_planner import NUM_CTAS
from shplb.planner import CostModel
from shplb.rates import GpuRates

_HOPPER_GEMM_FLOPS_PER_S = 700e12
_HOPPER = ("H100", "H200")


@dataclass(frozen=True)
class Device:
    """Rates and streaming multiprocessors of one kind of GPU, and in words where they come from."""

    cost: CostModel = field(default_factory=CostModel)
    num_ctas: int = NUM_CTAS
    #: Of projections in a server (docs/algorithms.md), to predict what replicas cost; None where it was not measured.
    gemm_flops_per_s: float | None = _HOPPER_GEMM_FLOPS_PER_S
    origin: str = "rates of an H200 (`shplb calibrate` measures yours)"


H200 = Device()


def choose_device(model: ModelShape, rates_file: Path | None, rates_dir: Path) -> Device:
    """The GPU of ``rates_file``; without one, the GPU whose rates in ``rates_dir`` fit the model; else an H200.

    Where several fit, those measured last count.

    Raises:
        FileFormatError: ``rates_file`` can't be used.
        ValueError: it holds rates of another head size.
    """
    if rates_file is not None:
        rates = GpuRates.load(rates_file)
        if not _fits(rates, model):
            raise ValueError(
                f"{rates_file} holds rates for head_dim {rates.head_dim} and {rates.group_size} query heads to a KV "
                f"head, this model has {model.head_dim} and {model.group_size}: calibrate with this model."
            )
        return _device(rates)
    found = []
    for path in rates_dir.glob("*.json"):
        try:
            rates = GpuRates.load(path)
        except ValueError:
            continue  # `shplb doctor` and the server speak of it
        if _fits(rates, model):
            found.append((path.stat().st_mtime, path.name, rates))
    return _device(max(found, key=lambda item: item[:2])[2]) if found else H200


def _fits(rates: GpuRates, model: ModelShape) -> bool:
    return (rates.head_dim, rates.group_size) == (model.head_dim, model.group_size)


def _device(rates: GpuRates) -> Device:
    gemm = _HOPPER_GEMM_FLOPS_PER_S if any(name in rates.gpu for name in _HOPPER) else None
    return Device(rates.model, rates.num_ctas, gemm, f"rates measured on {rates.gpu} ({rates.base}, {rates.dtype})")
