# SPDX-License-Identifier: Apache-2.0
"""GPU memory that sparse prefill takes beside the KV pool and what the stock path takes anyway."""

from dataclasses import dataclass

from shplb.kv_cost import KvCost
from shplb.plan import ServingPlan
from shplb.plan_planner import NUM_CTAS
from shplb.prediction import CHUNK_TOKENS
from shplb.sparsity import PAGE_SIZE, num_pages

#: As in kernels/page_mass.py: rows of a tile, and pooled keys per slice whose softmax statistics are kept apart.
_TILE_ROWS, _SLICE_KEYS = 128, 1024
_TABLE_ARRAYS = 6  # of an item: its list's start and the work plan's arrays


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one rank while a step of so many new tokens runs on a context of so many. Layers use the same again.

    Attributes:
        scores: float32, one per (query head, query block, page).
        pooled: keys and queries that scores are made of, and their softmax statistics.
        lists: int32 page lists of one layer.
        tables: work plans of all layers, uploaded once per step.
    """

    scores: int
    pooled: int
    lists: int
    tables: int

    @property
    def total(self) -> int:
        return self.scores + self.pooled + self.lists + self.tables

    @classmethod
    def of(cls, plan: ServingPlan, chunk_tokens: int, context_tokens: int) -> "StepMemory":
        model, rule = plan.model, plan.rule
        heads, blocks = plan.num_slots * model.group_size, -(-chunk_tokens // rule.query_block)
        pages, runs = num_pages(context_tokens), _power_of_two(rule.query_block // rule.score_stride)
        keys = pages * PAGE_SIZE // rule.score_stride
        pooled = 2 * model.head_dim * (plan.num_slots * keys + heads * blocks * runs)
        tile_heads = min(_power_of_two(model.group_size), _TILE_ROWS // runs)
        tiles = plan.num_slots * -(-model.group_size // tile_heads) * -(-blocks * tile_heads * runs // _TILE_ROWS)
        statistics = 2 * 4 * _TILE_ROWS * tiles * -(-keys // _SLICE_KEYS)
        kept = plan.budget_table(context_tokens).pages[:, :, -1]
        longest = max(
            int(kept[layer, plan.local_qo_heads(rank)[layer]].sum())
            for rank in range(plan.tp_size)
            for layer in range(model.num_layers)
        )
        items = model.num_layers * (_TABLE_ARRAYS * heads * blocks + NUM_CTAS)
        return cls(4 * heads * blocks * pages, pooled + statistics, 4 * blocks * longest, 4 * items)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def memory_text(plan: ServingPlan, context_tokens: int, chunk_tokens: int = CHUNK_TOKENS) -> str:
    """One sentence for people; a prompt shorter than a chunk is one chunk."""
    chunk_tokens = min(chunk_tokens, context_tokens)
    memory = StepMemory.of(plan, chunk_tokens, context_tokens).total
    tokens = -(-memory // KvCost.of(plan).bytes_per_token_rank)
    return (
        f"GPU memory beside the KV cache: {memory / 2**20:.3g} MiB per rank in chunks of {chunk_tokens} on "
        f"{context_tokens} tokens, as much as {tokens} tokens of KV cache"
    )
