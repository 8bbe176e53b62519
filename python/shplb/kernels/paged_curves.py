# SPDX-License-Identifier: Apache-2.0
"""Curves of all query blocks of a chunk at once, on a GPU: what ``block_measurement`` defines block by block.

Scores are those of serving, from the same kernels. Nothing here waits for the GPU. Keys and values are read where they
are, in their own type; what is written is a float32 output for every head, block, point and measured row, one tile of
rows at a time. In a chunk of 7680 tokens of Llama-3.1-8B that is 190 MB, with half as much again for scores, ranks and
lists at 131072 tokens; blocks are taken in parts where it would be more than ``_BYTES_AT_ONCE``.
"""

from collections.abc import Sequence

import numpy as np
import torch

from shplb.kernels.band_attention import TileShape as RowTile
from shplb.kernels.band_attention import band_attention
from shplb.kernels.block_measurement import BlockRows, Measure, kept_counts
from shplb.kernels.page_mass import TileShape, page_mass
from shplb.kernels.pooling import pool_keys, pool_queries, runs_of_block
from shplb.kernels.rank_bands import BAND, BandLists, band_lists, rank_steps, steps_of_ranks
from shplb.kernels.step_curves import step_curves
from shplb.profile import DENSITIES
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages

_BANDS = -(-len(DENSITIES) // BAND)
_BYTES_AT_ONCE = 256 * 2**20  # of outputs
_ALIGNED = 4  # int32 in 16 bytes


class PagedCurves:
    """Tables of a chunk's blocks on the device, the same in every layer."""

    def __init__(
        self, blocks: Sequence[BlockRows], slots: torch.Tensor, rule: SparsityRule, q: torch.Tensor,
        k_pool: torch.Tensor,
    ) -> None:  # fmt: skip
        """slots: int64 [num_tokens], pool slots of the request's tokens from token 0 on, those of a page together;
        q, k_pool: of any layer, for their shapes."""
        self._rule, self._device = rule, q.device
        self._group_size, self._head_dim = q.shape[1] // k_pool.shape[1], q.shape[2]
        self._ends = [block.end_row for block in blocks]
        self._num_tokens = self._ends[-1]
        self._max_pages = num_pages(self._num_tokens)
        offset, first, end = np.array(blocks).T
        columns = np.stack([first, end - first, offset, end, offset - first]).astype(np.int32)
        # Columns that begin aligned: Triton compiles kernels again for pointers that are not.
        columns = np.pad(columns, ((0, 0), (0, -len(blocks) % _ALIGNED)))
        self._first, self._rows, self._offset, self._end, self._shift = self._upload(columns)[:, : len(blocks)]
        self._tokens = slots[: self._num_tokens].to(torch.int32)
        self._page_table = self._tokens[::PAGE_SIZE] // PAGE_SIZE
        self._zero, self._seq_len = self._upload(np.array([[0], [self._num_tokens]], dtype=np.int32))
        self._rank(blocks)

    @staticmethod
    def takes(q: torch.Tensor, k_pool: torch.Tensor, rule: SparsityRule) -> bool:
        """Whether the kernels are written for such a GPU, such tensors and scores."""
        half = q.dtype == k_pool.dtype and q.dtype in (torch.float16, torch.bfloat16)
        recent = torch.cuda.get_device_capability(q.device) >= (8, 0)
        return recent and half and rule.score == "mean_pool" and q.shape[2] in (64, 128)

    def _rank(self, blocks: Sequence[BlockRows]) -> None:
        """Which pages each block sees, which are forced, and the step at every rank."""
        rule, page = self._rule, np.arange(self._max_pages)
        forced = np.zeros((len(blocks), len(page)), dtype=bool)
        for line, block in zip(forced, blocks, strict=True):
            sink_end, first_local = rule.forced_pages(block.first_row, block.end_row)
            line[:sink_end] = line[first_local:] = True
        visible = page < np.array([num_pages(block.end_row) for block in blocks])[:, None]
        self._forced, self._visible = self._upload(np.stack([forced & visible, visible]))
        counts = np.array([kept_counts(block.first_row, block.end_row, rule) for block in blocks], dtype=np.int64)
        self._steps = steps_of_ranks(self._upload(counts), self._max_pages)
        size = TileShape.of(self._group_size, runs_of_block(rule.query_block, rule.score_stride)).blocks
        starts = range(0, len(blocks), size)
        self._tiles = self._upload(np.array([(i, min(i + size, len(blocks))) for i in starts], dtype=np.int32))

    def layer(self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, sm_scale: float) -> Measure:
        """See ``chunk_curves.ChunkCurves``."""
        scores = self._scores(q, k_pool, sm_scale)
        steps = rank_steps(scores, self._forced, self._visible, self._steps)

        def measure(rows: Sequence[np.ndarray], gram: torch.Tensor) -> torch.Tensor:
            most = max(map(len, rows))
            tile = RowTile.of(self._group_size, self._head_dim, most)
            lists = band_lists(steps, self._page_table, self._group_size, tile.lanes, _BANDS)
            found = torch.zeros((2, q.shape[1], len(rows), _BANDS * BAND), dtype=torch.float64, device=self._device)
            for first in range(0, most, tile.rows):
                table = self._row_table([chosen[first : first + tile.rows] for chosen in rows], tile.rows)
                found += self._pass(q, k_pool, v_pool, table, lists, tile.lanes, sm_scale, gram.contiguous())
            return found[..., : len(DENSITIES)]

        return measure

    def _pass(
        self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, table: torch.Tensor, lists: BandLists,
        lanes: int, sm_scale: float, gram: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Curves of one tile of rows per block; table: int32 [num_blocks, 1 + rows], how many count, and positions."""
        bytes_per_block = 4 * q.shape[1] * _BANDS * BAND * (table.shape[1] - 1) * q.shape[2]
        at_once = max(_BYTES_AT_ONCE // bytes_per_block // _ALIGNED, 1) * _ALIGNED
        parts = []
        for start in range(0, len(table), at_once):
            own = slice(start, start + at_once)
            sums = band_attention(
                q, k_pool, v_pool, table[own, 1:].contiguous(), self._first[own], self._end[own], self._shift[own],
                BandLists(*(part[:, own].contiguous() for part in lists)), lanes, sm_scale,
            )  # fmt: skip
            parts.append(step_curves(sums, gram, table[own, 0].contiguous()))
        return torch.cat(parts, dim=2)

    def _scores(self, q: torch.Tensor, k_pool: torch.Tensor, sm_scale: float) -> torch.Tensor:
        stride = self._rule.score_stride
        keys = pool_keys(
            k_pool, self._tokens[None], self._zero, self._seq_len, self._zero, self._max_pages, self._max_pages, stride
        )
        queries = pool_queries(q, self._first, self._offset, self._rows, self._rule.query_block, stride)
        request = self._zero.expand(len(self._first)).contiguous()
        return page_mass(
            queries, keys, self._tiles, request, self._first, self._rows, self._zero, self._max_pages, stride, sm_scale
        )

    def _row_table(self, rows: Sequence[np.ndarray], width: int) -> torch.Tensor:
        """int32 [num_blocks, 1 + width]: number of rows, then the rows; behind them one that the block has."""
        table = np.empty((len(rows), 1 + width), dtype=np.int32)
        for line, chosen, block_end in zip(table, rows, self._ends, strict=True):
            line[0] = len(chosen)
            line[1 : 1 + len(chosen)] = chosen
            line[1 + len(chosen) :] = block_end - 1
        return self._upload(table)

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        """To the device, without waiting for what it does."""
        there = torch.from_numpy(array)
        return there.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else there
