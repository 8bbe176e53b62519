# SPDX-License-Identifier: Apache-2.0
"""The whole comparison: one server dense, one per candidate, and the recommendation."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shplb.budget import Objective, Scope
from shplb.device import Device
from shplb.plan import ServingPlan
from shplb.prediction import predict_prompt
from shplb.profile import HeadProfile
from shplb.quality.candidates import make_candidates
from shplb.quality.measurement import Sample, measure
from shplb.quality.recommendation import Recommendation, Row, compare, recommend
from shplb.texts import Document, RetrievalPrompt


@dataclass(frozen=True)
class Question:
    """What is compared, on what, and where it runs."""

    model_path: Path
    ways: tuple[tuple[Objective, Scope], ...]
    densities: tuple[float, ...]
    tokens: int
    tp_size: int
    device: str
    tolerance: float
    attention_backend: str = ""


@dataclass(frozen=True)
class Comparison:
    """Rows per candidate, dense's right answers and mean NLL, and what to serve; ``plan`` is None for dense."""

    rows: list[Row]
    dense_nll: float
    dense_right: int
    prompts: int
    windows: int
    recommendation: Recommendation
    plan: ServingPlan | None


def compare_budgets(
    profile: HeadProfile,
    question: Question,
    texts: list[Document],
    prompts: list[RetrievalPrompt],
    predicted: Device,
    on_server: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Measure every candidate at every density and apply the rule; errors as in ``measure`` and ``make_candidates``."""
    q = question
    candidates = {
        (candidate.name, asked): candidate
        for asked in q.densities
        for candidate in make_candidates(profile, q.ways, asked, tokens=q.tokens, tp_size=q.tp_size)
    }

    def sample(name: str, plan: ServingPlan | None) -> Sample:
        on_server(name)
        file = name.replace(", per ", "-").replace(" at ", "-")
        return measure(
            plan, q.model_path, work, texts, prompts, name=file, device=q.device, tp_size=q.tp_size,
            attention_backend=q.attention_backend,
        )  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="shplb-compare-") as folder:
        work = Path(folder)
        dense = sample("dense", None)
        samples = {(name, asked): sample(f"{name} at {asked:g}", c.plan) for (name, asked), c in candidates.items()}
    rows = [
        compare(name, asked, c.computed_density, samples[name, asked], dense,
                tolerance=q.tolerance, is_default=c.is_default)
        for (name, asked), c in candidates.items()
    ]  # fmt: skip
    # Predicted for the GPU that will serve, wherever the comparison runs; ways at one density compute the same share.
    pays = {asked: _pays(next(c.plan for (_, at), c in candidates.items() if at == asked), q.tokens, predicted)
            for asked in q.densities}  # fmt: skip
    found = recommend(rows, samples, pays=pays)
    chosen = None if found.name is None or found.asked is None else candidates[found.name, found.asked].plan
    return Comparison(
        rows, float(dense.windows.mean()), int(dense.right.sum()), len(prompts), len(dense.windows), found, chosen
    )


def _pays(plan: ServingPlan, tokens: int, device: Device) -> bool:
    prediction = predict_prompt(plan, tokens, device)
    return prediction.placed_ms < prediction.dense_ms
