# SPDX-License-Identifier: Apache-2.0
"""``shplb calibrate``: measure this GPU's rates, by which the planner chooses between sparse and dense."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shplb.commands.messages import say

if TYPE_CHECKING:
    from shplb.rates import GpuRates

# Where a config names no context length.
_MOST_TOKENS = 1 << 17


def calibrate(
    model_path: Annotated[Path, typer.Option(help="Model folder; only its config.json is read.")],
    tp: Annotated[int, typer.Option(help="Ranks that will serve it.")] = 1,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16, as served.")] = "bfloat16",
    base: Annotated[str, typer.Option(help="Attention backend of dense steps: fa3 or flashinfer.")] = "fa3",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: the cache, where servers look.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rates as JSON.")] = False,
) -> None:
    """Time sparse and dense prefill of this model's shape on this machine's first GPU, and keep the rates (a minute).

    Servers that start on the same kind of GPU use them from then on instead of those of an H200. Run it while the GPU
    does nothing else.

    Example: shplb calibrate --model-path /models/Llama-3.1-8B-Instruct --tp 2
    """
    from shplb.kernels.timing import measure_rates
    from shplb.model import ModelShape, context_length, read_config
    from shplb.planning import check_tp_size
    from shplb.sglang.active_plan import cached_rates_path

    config = read_config(model_path)
    model = ModelShape.from_config(config)
    check_tp_size(model, tp)
    if dtype not in ("bfloat16", "float16"):
        raise ValueError(f"--dtype is {dtype}, expected bfloat16 or float16.")
    if base not in ("fa3", "flashinfer"):
        raise ValueError(f"--base is {base}, expected fa3 or flashinfer.")
    shape = (model.num_qo_heads // tp, model.num_kv_heads // tp, model.head_dim)
    with Console(stderr=True).status("timing prefill steps"):
        rates = measure_rates(shape, dtype, base, context_length(config) or _MOST_TOKENS)
    path = out or cached_rates_path(rates.gpu, rates.dtype, rates.head_dim, rates.group_size, rates.base)
    rates.save(path)
    if as_json:
        typer.echo(json.dumps(facts_of(rates) | {"file": str(path)}, indent=1))
    else:
        print_rates(rates, Console())
        say(f"wrote {path}")


def facts_of(rates: "GpuRates") -> dict[str, Any]:
    """What is worth reading of rates, for JSON."""
    from shplb.rates import errors

    return {
        "gpu": rates.gpu,
        "head_dim": rates.head_dim,
        "group_size": rates.group_size,
        "base": rates.base,
        "cost": rates.cost,
        "relative_error": errors(rates.model, rates.launch_ns, rates.samples, rates.num_ctas),
    }


def print_rates(rates: "GpuRates", console: Console) -> None:
    """Measured and predicted time of a layer for every step, microseconds."""
    from shplb.rates import predict

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("cached", "new", "density", "sparse us", "predicted", "dense us", "predicted", "pays"):
        table.add_column(name, justify="right", no_wrap=True)
    for sample in rates.samples:
        sparse, dense = (ns + rates.launch_ns for ns in predict(rates.model, sample, rates.num_ctas))
        measured = sample.attention_ns + sample.selection_ns
        table.add_row(
            str(sample.prefix), str(sample.new), f"{sample.density:g}", f"{measured / 1e3:.0f}", f"{sparse / 1e3:.0f}",
            f"{sample.dense_ns / 1e3:.0f}", f"{dense / 1e3:.0f}", "yes" if measured < sample.dense_ns else "",
        )  # fmt: skip
    console.print(f"{rates.gpu}, head_dim {rates.head_dim}, dense by {rates.base}", highlight=False)
    console.print(table)
    console.print(json.dumps(rates.cost), highlight=False)
    for path, error in facts_of(rates)["relative_error"].items():
        console.print(
            f"{path}: off by {error['median']:.0%} in the median, {error['worst']:.0%} at worst", highlight=False
        )
