# SPDX-License-Identifier: Apache-2.0
"""Plain Python definition of what the step planner must write; slow and obvious."""

from dataclasses import dataclass

import numpy as np

PAGE = 64


def aligned(num_bytes: int) -> np.ndarray:
    """Dirty uint8 buffer on a 16-byte boundary."""
    buffer = np.full(num_bytes + 16, 0xAB, np.uint8)
    start = -buffer.ctypes.data % 16
    return buffer[start : start + num_bytes]


@dataclass(frozen=True)
class Block:
    request: int
    first_row: int
    qo_indptr: int
    qo_len: int
    visible: int
    forced: int
    unused: int  # tokens of the last visible page


def query_blocks(prefix_lens, new_lens, sparse, tile, sink, local) -> list[Block]:
    blocks, row = [], 0
    for request, (prefix, new) in enumerate(zip(prefix_lens, new_lens, strict=True)):
        prefix, new = int(prefix), int(new)
        position = prefix
        while position < prefix + new and sparse[request]:
            end = min((position // tile + 1) * tile, prefix + new)
            visible = -(-end // PAGE)
            first_local = max(position // PAGE - local, 0)
            forced = min(sink, first_local) + visible - first_local
            blocks.append(
                Block(request, position, row + position - prefix, end - position, visible, forced, visible * PAGE - end)
            )
            position = end
        row += new
    return blocks


def list_lengths(blocks, keep, shared_group=1) -> np.ndarray:
    """Pages [num_list_heads, num_blocks]; keep [heads of the rank, max_pages + 1] of one layer."""
    rows = keep.reshape(-1, shared_group, keep.shape[-1]).max(axis=1)
    return np.array([[max(int(row[b.visible]), b.forced) for b in blocks] for row in rows]).reshape(len(rows), -1)


def item_load(pages, cost, kv_tile=96):
    return cost.item_ns + cost.kv_tile_ns * (-(-pages * PAGE // kv_tile))
