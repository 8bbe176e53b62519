# SPDX-License-Identifier: Apache-2.0
"""Importance of heads: what a unit of a head's output error costs the model's loss.

``shplb profile`` measures output error in SGLang's engine, where there are no gradients; this pass through transformers
weighs it. How the weight is defined and why: docs/algorithms.md, "Importance of heads".
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from shplb.container import FileFormatError, load_container, require_array, save_container
from shplb.model import ModelShape, read_config
from shplb.profile import DENSITIES
from shplb.sparsity import SparsityRule
from shplb.texts import Document

#: What `shplb profile --importance` takes.
METHODS = ("none", "fisher")
#: One document of each domain, and as long as they need to be for pages to be dropped at all.
NUM_DOCUMENTS, MOST_TOKENS = 5, 2048

KIND = "Sensitivity"
FORMAT_VERSION = 1
# Served densities; below, error curves are steepest and would decide the weight alone.
_LEAST_DENSITY = 1 / 16


class Sensitivity(msgspec.Struct, frozen=True):
    """Sums over query rows, from ``kernels.sensitivity.SensitivityRecorder``.

    loss, error: float64 [num_layers, num_qo_heads, num_points]; slope: float64 [num_layers, num_qo_heads].
    """

    loss: np.ndarray
    error: np.ndarray
    slope: np.ndarray

    def save(self, path: Path) -> None:
        save_container(path, KIND, FORMAT_VERSION, msgspec.structs.asdict(self), {})

    @classmethod
    def load(cls, path: Path, model: ModelShape) -> "Sensitivity":
        """Read and check shapes; FileFormatError when the file can't be used."""
        tensors, _ = load_container(path, KIND, FORMAT_VERSION)
        heads = (model.num_layers, model.num_qo_heads)
        curves = (*heads, len(DENSITIES))
        return cls(
            loss=require_array(path, tensors, "loss", "float64", curves),
            error=require_array(path, tensors, "error", "float64", curves),
            slope=require_array(path, tensors, "slope", "float64", heads),
        )


def measure_sensitivity(
    model_dir: Path,
    documents: Sequence[Document],
    rule: SparsityRule,
    *,
    device: str,
    seed: int = 0,
    folder: Path | None = None,
    on_document: Callable[[str], None] = lambda name: None,
) -> list[Sensitivity]:
    """One forward and backward pass per document, on query rows of its last three quarters.

    folder: where finished documents are kept, so that a second call with the same arguments goes on where a first one
    was stopped; None keeps nothing.
    """
    from shplb.hf.gradients import GradientModel
    from shplb.kernels.sensitivity import SensitivityRecorder

    model = ModelShape.from_config(read_config(model_dir))
    gradients: GradientModel | None = None
    found: list[Sensitivity] = []
    for index, document in enumerate(documents):
        path = None if folder is None else folder / f"sensitivity{index:03d}.safetensors"
        done = None if path is None else _finished(path, model)
        if done is None:
            gradients = gradients or GradientModel(model_dir, device)
            first_row = len(document.token_ids) // 4
            recorder = SensitivityRecorder(gradients.output_weights(), model.head_dim, rule, first_row)
            gradients.run(document.token_ids, seed + index, recorder.observe)
            done = Sensitivity(recorder.loss, recorder.error, recorder.slope)
            if path is not None:
                done.save(path)
        found.append(done)
        on_document(document.name)
    return found


def fisher_importance(found: list[Sensitivity], model: ModelShape) -> np.ndarray:
    """float64 [num_layers, num_qo_heads], mean 1 over heads that are not inert, whose own importance is 1.

    The expected change of the loss per unit of output error, both summed over documents and over the densities that are
    served (1/16 and above).
    """
    served = np.array(DENSITIES) >= _LEAST_DENSITY
    loss = sum(each.loss[..., served].sum(axis=-1) for each in found)
    error = sum(each.error[..., served].sum(axis=-1) for each in found)
    return normalised(np.asarray(loss / np.where(error > 0, error, np.inf)), model)


def slope_importance(found: list[Sensitivity], model: ModelShape) -> np.ndarray:
    """The same from gradients alone: ``E|g|^2``, g restricted to what the head can write. To compare with."""
    return normalised(np.asarray(sum(each.slope for each in found)), model)


def normalised(weights: np.ndarray, model: ModelShape) -> np.ndarray:
    """``weights`` [num_layers, num_qo_heads] over their mean, inert heads 1 and left out of it."""
    real = np.array([head not in model.inert_qo_heads for head in range(model.num_qo_heads)])
    mean = weights[:, real].mean() if real.any() else 0.0
    if not mean > 0:
        return np.ones_like(weights)
    return np.where(real[None], weights / mean, 1.0)


def _finished(path: Path, model: ModelShape) -> Sensitivity | None:
    try:
        return Sensitivity.load(path, model)
    except FileFormatError:
        return None
