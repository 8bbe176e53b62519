# SPDX-License-Identifier: Apache-2.0
"""What replicas of KV groups cost: KV memory, projections and decoding."""

from dataclasses import dataclass

from shplb.plan import ServingPlan

#: Bytes of a number in bfloat16 or float16.
_BYTES = 2


@dataclass(frozen=True)
class ReplicaPrice:
    """Per rank, in bfloat16.

    Attributes:
        factor: slots with replicas over slots without. KV memory per token, the rows of the q, k, v and o projections
            with their GEMMs, and the KV that decoding reads all grow by it: each copy is held, written and read.
        kv_bytes_per_token, whole_kv_bytes_per_token: all layers, with and without replicas.
        weight_bytes, whole_weight_bytes: of the q, k, v and o projections of all layers, with and without replicas.
    """

    replicas: int
    factor: float
    kv_bytes_per_token: int
    whole_kv_bytes_per_token: int
    weight_bytes: int
    whole_weight_bytes: int

    @property
    def flops_per_token(self) -> int:
        """What the copies add to the projections of one token: two for every weight."""
        return 2 * (self.weight_bytes - self.whole_weight_bytes) // _BYTES

    @property
    def text(self) -> str:
        """One sentence for people."""
        more = (self.weight_bytes - self.whole_weight_bytes) / 1e6
        return (
            f"price of {self.replicas} replica slot(s) per rank and layer: KV memory per token x{self.factor:.2f} "
            f"({self.whole_kv_bytes_per_token} to {self.kv_bytes_per_token} bytes per rank), so 1/{self.factor:.2f} of "
            f"the tokens fit; q, k, v and o projections x{self.factor:.2f} ({more:.1f} MB more per rank); decoding "
            f"reads x{self.factor:.2f} of the KV, since both copies are read"
        )


def price_of(plan: ServingPlan) -> ReplicaPrice:
    """The price of the plan's replicas; a factor of 1 without any."""
    model, slots = plan.model, plan.num_slots
    whole = slots - plan.replicas
    kv_bytes = 2 * model.head_dim * model.num_layers * _BYTES
    weight_bytes = 2 * (model.group_size + 1) * model.head_dim * model.hidden_size * model.num_layers * _BYTES
    return ReplicaPrice(
        replicas=plan.replicas,
        factor=slots / whole,
        kv_bytes_per_token=kv_bytes * slots,
        whole_kv_bytes_per_token=kv_bytes * whole,
        weight_bytes=weight_bytes * slots,
        whole_weight_bytes=weight_bytes * whole,
    )
