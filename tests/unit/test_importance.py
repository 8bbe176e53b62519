# SPDX-License-Identifier: Apache-2.0
"""Importance of heads: gradients against plain autograd, weights against their definition, going on after a stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import make_shape
from tiny_models import CASES, VOCABULARY, tiny_model

from shplb.hf.gradients import GradientModel
from shplb.importance import Sensitivity, fisher_importance, measure_sensitivity, slope_importance
from shplb.kernels.sensitivity import SensitivityRecorder, restricted_square
from shplb.model import ModelShape, read_config
from shplb.profile import DENSITIES
from shplb.sparsity import SparsityRule
from shplb.texts import Document

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}
LENGTH = 640
RULE = SparsityRule(query_block=64)
TOKENS = [(31 * index * index + 7 * index) % VOCABULARY for index in range(LENGTH)]


def saved(folder: Path, case: str = "llama", edit: Any = lambda model: None) -> Path:
    model = tiny_model(case, **SIZES, max_position_embeddings=LENGTH)
    with torch.no_grad():
        edit(model)
    model.save_pretrained(folder)
    return folder


def plain_gradients(folder: Path, seed: int) -> list[torch.Tensor]:
    """Gradient at the input of every o_proj, by autograd through transformers' own attention, nothing checkpointed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    inputs: list[torch.Tensor] = []

    def keep(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        arguments[0].retain_grad()
        inputs.append(arguments[0])

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(keep)
    logits = model(torch.tensor([TOKENS])).logits[0]
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    return [each.grad[0].view(LENGTH, SIZES["num_attention_heads"], -1) for each in inputs if each.grad is not None]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_plain_autograd(case: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", case)
    found: dict[int, torch.Tensor] = {}
    GradientModel(folder, "cpu").run(TOKENS, 5, lambda layer, q, k, v, gradient, scale: found.update({layer: gradient}))
    expected = plain_gradients(folder, 5)
    assert list(found) == [1, 0]
    for layer, gradient in enumerate(expected):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(found[layer], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_what_the_loss_does_not_see_has_no_importance(tmp_path: Path) -> None:
    """Head 2 of the last layer writes to two hidden dimensions that nothing reads."""
    hidden, dim = SIZES["hidden_size"], SIZES["hidden_size"] // SIZES["num_attention_heads"]

    def edit(model: Any) -> None:
        last = model.model.layers[-1]
        last.self_attn.o_proj.weight[: hidden - 2, 2 * dim : 3 * dim] = 0
        last.self_attn.o_proj.weight[hidden - 2 :, : 2 * dim] = 0
        last.self_attn.o_proj.weight[hidden - 2 :, 3 * dim :] = 0
        for projection in (last.mlp.gate_proj, last.mlp.up_proj, last.mlp.down_proj):
            projection.weight.zero_()
        model.lm_head.weight[:, hidden - 2 :] = 0
        # The norm's scale would still see them: too small beside the rest of the stream to count.
        last.self_attn.o_proj.weight[hidden - 2 :] *= 1e-3

    folder = saved(tmp_path / "model", edit=edit)
    found = measure_sensitivity(folder, [Document("a", "prose", TOKENS)], RULE, device="cpu")
    weights = fisher_importance(found, ModelShape.from_config(read_config(folder)))
    assert weights.mean() == pytest.approx(1.0)
    others = np.delete(weights.ravel(), 6)
    assert found[0].loss[1, 2].max() < 1e-6 * found[0].loss[1, 3].max()
    assert others.min() > 0


def test_a_second_call_goes_on_without_the_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    documents = [Document("a", "prose", TOKENS), Document("b", "prose", TOKENS[::-1])]
    work, names = tmp_path / "work", []
    first = measure_sensitivity(folder, documents, RULE, device="cpu", folder=work)
    (folder / "model.safetensors").unlink()
    again = measure_sensitivity(folder, documents, RULE, device="cpu", folder=work, on_document=names.append)
    assert names == ["a", "b"]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.loss, other.loss)
    assert not np.array_equal(first[0].loss, first[1].loss)
    # A file that is damaged is made again, which needs the weights.
    (work / "sensitivity001.safetensors").write_bytes(b"damaged")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        measure_sensitivity(folder, documents, RULE, device="cpu", folder=work)


def test_same_seed_same_importance(tmp_path: Path) -> None:
    folder, documents = saved(tmp_path / "model"), [Document("a", "prose", TOKENS)]
    one, same, other = (measure_sensitivity(folder, documents, RULE, device="cpu", seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.loss, same.loss)
    assert not np.array_equal(one.loss, other.loss)
    np.testing.assert_array_equal(one.error, other.error)  # what the labels don't touch


def test_restricted_square_is_that_of_the_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 2, 8, generator=generator)  # [hidden, heads, head_dim]
    weight[:, 1, 3] = 0  # a direction that the head can't write
    slope = torch.randn(5, 48, generator=generator)  # gradient at the layer's output
    gradient = torch.einsum("ro,ohd->rhd", slope, weight)
    gram = torch.einsum("ohd,ohe->hde", weight, weight)
    for head, found in enumerate(restricted_square(gradient, gram)):
        basis = torch.linalg.svd(weight[:, head], full_matrices=False)
        directions = basis.U[:, basis.S > 1e-4]
        expected = (slope @ directions).pow(2).sum()
        torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=0.0)


def sensitivity(seed: int) -> Sensitivity:
    rng = np.random.default_rng(seed)
    loss, error = rng.uniform(1, 2, (2, 3, 8, len(DENSITIES)))
    return Sensitivity(loss, error, rng.uniform(1, 2, (3, 8)))


def test_weights_by_hand() -> None:
    model, found = make_shape(inert=(3,)), [sensitivity(0), sensitivity(1)]
    found[0].loss[0, 1] = found[0].error[0, 1] = found[1].loss[0, 1] = found[1].error[0, 1] = 0.0
    weights = fisher_importance(found, model)
    assert weights[:, :6].mean() == pytest.approx(1.0)
    assert weights[:, 6:].tolist() == [[1.0, 1.0]] * 3
    assert weights[0, 1] == 0.0
    served = slice(DENSITIES.index(1 / 16), None)
    ratio = sum(each.loss[2, 4, served].sum() for each in found) / sum(each.error[2, 4, served].sum() for each in found)
    other = sum(each.loss[1, 0, served].sum() for each in found) / sum(each.error[1, 0, served].sum() for each in found)
    assert weights[2, 4] / weights[1, 0] == pytest.approx(ratio / other)
    slopes = slope_importance(found, model)
    assert slopes[:, :6].mean() == pytest.approx(1.0)
    assert fisher_importance([Sensitivity(0 * found[0].loss, found[0].error, found[0].slope)], model).min() == 1.0


def test_early_blocks_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    q, gradient = torch.randn(2, LENGTH, 4, 16, generator=generator)
    k, v = torch.randn(2, LENGTH, 2, 16, generator=generator)
    weight = torch.randn(64, 64, generator=generator)

    def recorded(first_row: int) -> SensitivityRecorder:
        recorder = SensitivityRecorder([weight], 16, RULE, first_row)
        recorder.observe(0, q, k, v, gradient, 0.25)
        return recorder

    everything, late = recorded(0), recorded(320)
    assert (late.slope < everything.slope).all()
    np.testing.assert_allclose(late.slope, recorded(383).slope)
    assert (late.slope > recorded(384).slope).all()
    assert (late.error[:, :, 0] > 0).all()
    np.testing.assert_allclose(late.loss[..., -1], 0.0, atol=1e-6 * late.loss.max())
