# SPDX-License-Identifier: Apache-2.0
"""Where the time of measuring curves goes: GPU time of every kernel, one layer over all chunks of a document.

    python bench/profile_parts.py --shape llama-3.1-8b --tokens 32768

Random keys, so heads of a group agree on no page: the most that can be read. No engine is started, so dense attention
is not among the kernels. Prints a line of JSON per kernel, the longest first: milliseconds in all layers.
"""

import argparse
import json
import sys
from collections.abc import Callable

import torch
from dummy_model import SHAPES
from torch.profiler import ProfilerActivity, profile

from shplb.kernels.block_measurement import BlockRows
from shplb.kernels.paged_curves import PagedCurves
from shplb.row_sampling import sampled_rows
from shplb.sglang.metadata import cut_query_blocks
from shplb.sglang.profile_worker import CHUNK_TOKENS
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages, query_block_size


def layer_of(args: argparse.Namespace) -> Callable[[], None]:
    """Measures one layer, chunk after chunk."""
    config = SHAPES[args.shape]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    rule = SparsityRule(query_block=query_block_size(head_dim))
    generator = torch.Generator("cuda").manual_seed(args.seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    k_pool, v_pool = (randn(num_pages(args.tokens) * PAGE_SIZE, kv_heads, head_dim) for _ in range(2))
    slots = torch.arange(args.tokens, device="cuda")
    gram = torch.eye(head_dim, device="cuda").repeat(heads, 1, 1)
    queries = randn(CHUNK_TOKENS["cuda"], heads, head_dim)

    def measure() -> None:
        for prefix in range(0, args.tokens, len(queries)):
            new = min(len(queries), args.tokens - prefix)
            cut = cut_query_blocks([prefix], [new], rule.query_block)
            blocks = [BlockRows(block.offset, block.first_row, block.end_row) for block in cut]
            rows = [
                sampled_rows(block.first_row, block.end_row, every=args.row_sampling, seed=0, document="", layer=0)
                for block in blocks
            ]
            curves = PagedCurves(blocks, slots[: prefix + new], rule, queries[:new], k_pool)
            curves.layer(queries[:new], k_pool, v_pool, head_dim**-0.5)(rows, gram)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--row-sampling", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU was found; the kernels run on one only.")
    layers, measure = SHAPES[args.shape]["num_hidden_layers"], layer_of(args)
    measure()  # compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        measure()
        torch.cuda.synchronize()
    times = {event.key: event.device_time_total * layers / 1000 for event in recorded.key_averages()}
    shape = {"shape": args.shape, "tokens": args.tokens, "layers": layers, "device": torch.cuda.get_device_name()}
    print(json.dumps(shape | {"kernel": "all", "ms": round(sum(times.values()), 3)}))
    for name, time_ms in sorted(times.items(), key=lambda item: -item[1]):
        print(json.dumps({"kernel": name[:100], "ms": round(time_ms, 3)}))


if __name__ == "__main__":
    main()
