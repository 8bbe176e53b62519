# SPDX-License-Identifier: Apache-2.0
"""What a plan's layout takes of the KV pool."""

from dataclasses import dataclass

from shplb.plan import ServingPlan


@dataclass(frozen=True)
class KvCost:
    """Bytes of KV cache per token on every rank (all hold equally many KV groups), and what of it holds nothing new.

    Attributes:
        bytes_per_token_rank: keys and values of all layers.
        padding_bytes: of these, of groups of zeros that `shplb pad` added, on average over ranks.
        replica_bytes: of these, of groups that another rank holds, too, on average over ranks.
        element_bytes: of one number: 2, since KV in 8 or 4 bits is refused.
    """

    bytes_per_token_rank: int
    padding_bytes: float
    replica_bytes: float
    element_bytes: int = 2

    @classmethod
    def of(cls, plan: ServingPlan) -> "KvCost":
        model, layers = plan.model, plan.physical_to_logical.shape[0]
        group = 2 * model.head_dim * cls.element_bytes  # one group, one layer
        slots = plan.physical_to_logical.shape[1]
        return cls(
            bytes_per_token_rank=layers * slots // plan.tp_size * group,
            padding_bytes=layers * len(model.inert_kv_heads) * group / plan.tp_size,
            replica_bytes=layers * (slots - model.num_kv_heads) * group / plan.tp_size,
        )
