# SPDX-License-Identifier: Apache-2.0
"""Rows of bench_scheduler about replicas of KV groups: quality of their placement, and the price of dividing them."""

from collections.abc import Callable

import numpy as np

from shplb import CostModel, StepPlanner, place_heads, place_replicas

Timed = Callable[[Callable[[], object], int], dict[str, float]]


def bench_replica_placement(draw: Callable[[str, tuple[int, int]], np.ndarray], timed: Timed) -> list[dict]:
    """Largest rank load over the lower bound, whole units as placed beside one extra slot per rank.

    ``eplb_halves`` is what EPLB's placement gives where copies get equal shares, as its router does; ``greedy`` the
    same placement, best divided.
    """
    rows = []
    instances = 200
    for kind in ("lognormal", "bimodal"):
        for units, ranks in ((2, 2), (4, 4), (8, 2), (8, 4), (8, 8), (16, 8)):
            loads = draw(kind, (instances, units))
            whole = place_heads(loads, ranks)
            row: dict = {"loads": kind, "num_units": units, "num_ranks": ranks, "instances": instances}
            row["whole_units"] = round(float(whole.imbalance.mean()), 5)
            greedy = place_replicas(loads, ranks, 1, method="greedy")
            row["eplb_halves"] = round(float(halved(loads, greedy.slot_groups).mean()), 5)
            found = {"greedy": greedy, "auto": place_replicas(loads, ranks, 1)}
            for method, placed in found.items():
                time = timed(lambda m=method, x=loads, k=ranks: place_replicas(x, k, 1, method=m), 3)
                row[method] = {
                    "imbalance": round(float(placed.imbalance.mean()), 5),
                    "mean_ratio": round(float((placed.rank_loads.max(axis=1) / placed.lower_bound).mean()), 5),
                    "us_per_layer": round(time["median_us"] / instances, 3),
                }
            if units <= 8:
                exact = place_replicas(loads[:50], ranks, 1, method="exact").rank_loads.max(axis=1)
                gap = found["auto"].rank_loads[:50].max(axis=1) / exact
                row["gap_to_exact"] = {"mean": round(float(gap.mean()), 6), "max": round(float(gap.max()), 5)}
            rows.append(row)
    return rows


def halved(loads: np.ndarray, slot_groups: np.ndarray) -> np.ndarray:
    """Imbalance [num_layers] with copied units half on each rank."""
    layers, ranks = slot_groups.shape[:2]
    slots = slot_groups.reshape(layers, -1)
    copies = np.stack([np.bincount(row, minlength=loads.shape[1]) for row in slots])
    shares = np.take_along_axis(loads / copies, slots, axis=1).reshape(layers, ranks, -1).sum(axis=2)
    return np.asarray(shares.max(axis=1) / shares.mean(axis=1))


def bench_replica_steps(rng: np.random.Generator, aligned: Callable[[int], np.ndarray], timed: Timed) -> list[dict]:
    """Planning a chunk of 8192 after 122880 tokens, 32 layers, 32 query and 8 KV heads on 8 ranks, one thread.

    What dividing costs is the difference of ``predict`` to whole groups; ``plan`` also writes the lists of twice as
    many slots. Unequal speeds are what feedback sets.
    """
    visible = np.arange(2049)
    density = np.clip(rng.lognormal(np.log(0.1), 0.8, (32, 32, 1)), 0.005, 1)
    keep = np.clip(np.ceil(density * visible), np.minimum(4, visible), visible).astype(np.int32)
    loads = keep[:, :, -1].reshape(32, 8, 4).sum(axis=2).astype(np.int64)
    whole = np.tile(np.arange(8, dtype=np.int32).reshape(1, 8, 1), (32, 1, 1))
    copied = np.ascontiguousarray(place_replicas(loads, 8, 1).slot_groups)
    rows = []
    unequal = np.array([1000, 1024, 1100, 920, 1024, 1040, 1010, 1030])
    for name, slots, speeds in (
        ("whole", whole, None),
        ("replicas", copied, None),
        ("replicas, unequal speeds", copied, unequal),
    ):
        planner = StepPlanner(
            num_kv_heads=8, head_dim=128, keep_pages=keep, slot_groups=slots, rank=0, cost=CostModel()
        )
        if speeds is not None:
            planner.set_rank_speeds(speeds)
        for step, prefix, new in (
            ("chunk_8192_on_122880", [122880], [8192]),
            ("8 x 1024", [1024 * i for i in range(8)], [1024] * 8),
        ):
            lens = np.array(prefix), np.array(new)
            out = aligned(planner.buffer_bytes(len(new), sum(new)))
            plan = planner.plan(*lens, out, "sparse")
            ranks = plan.rank_makespan_ns
            rows.append(
                {
                    "slots": name,
                    "step": step,
                    "num_layers": 32,
                    "num_ranks": 8,
                    "imbalance": round(float(ranks.max(axis=1).sum() / ranks.mean(axis=1).sum()), 4),
                    "predict": timed(lambda p=planner, x=lens: p.predict(*x, "sparse"), 300),
                    **timed(lambda p=planner, x=lens, o=out: p.plan(*x, o, "sparse"), 200),
                }
            )
    return rows
