# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests: real SmolLM2 weights, converted once and kept under .cache/tests."""

import importlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

#: Where converted models and reference answers are kept between runs.
CACHE = Path(os.environ.get("SHPLB_TEST_CACHE") or Path(__file__).parents[1] / ".cache" / "tests")


#: Layers of the model in tests that compare engines or ranks, to which two thirds of the layers add time only.
SHORT_LAYERS = 10


def pytest_configure() -> None:
    """Give every pytest-xdist worker one core: servers of two workers that share cores spin against each other.

    SGLang imports all its model files in every rank; the other ones would cost ten seconds each time. For the same
    reason processes that tests start find tests/startup first.
    """
    paths = [str(Path(__file__).parent / "startup"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(_other_models("llama")))
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    _load_triton_kernels()  # imports torch, which makes a thread for every core it then sees


def _load_triton_kernels() -> None:
    """Without a GPU, load our kernels for Triton's interpreter, which must be on while they are defined, and only then:
    servers that tests start would see it, too."""
    import torch

    if torch.cuda.is_available():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in ("paged_prefill", "chunk_curves"):
            importlib.import_module(f"shplb.kernels.{module}")
        importlib.import_module("triton.experimental.gluon")  # else on first use


def _other_models(kept: str) -> list[str]:
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(next(iter(spec.submodule_search_locations))) / "srt" / "models"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in (kept, "registry", "utils", "__init__"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a float32 Hugging Face folder: 9 query and 3 KV heads."""
    from shplb.hf.gguf import convert_smollm2

    return convert_smollm2(CACHE / "smollm2-float32")


@pytest.fixture(scope="session")
def smollm2_padded(smollm2: Path) -> Path:
    """The same model padded to 4 KV groups, so that it splits over 2 ranks."""
    from shplb.hf.padding import pad_kv_groups

    return pad_kv_groups(smollm2, CACHE / "smollm2-float32-padded", 4)


@pytest.fixture(scope="session")
def smollm2_short(smollm2: Path) -> Path:
    """The first layers of SmolLM2, then its final norm and head."""
    from shplb.hf.folder import build_folder

    def build(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        for path in smollm2.glob("*.j*"):
            shutil.copy(path, folder / path.name)
        config = json.loads((smollm2 / "config.json").read_text()) | {"num_hidden_layers": SHORT_LAYERS}
        (folder / "config.json").write_text(json.dumps(config))
        weights = load_file(smollm2 / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if _layer_of(name) < SHORT_LAYERS}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return build_folder(CACHE / "smollm2-short", f"first {SHORT_LAYERS} layers", build)


def _layer_of(weight: str) -> int:
    return next((int(part) for part in weight.split(".") if part.isdecimal()), -1)


@pytest.fixture(scope="session")
def smollm2_short_padded(smollm2_short: Path) -> Path:
    """The same padded to 4 KV groups."""
    from shplb.hf.padding import pad_kv_groups

    return pad_kv_groups(smollm2_short, CACHE / "smollm2-short-padded", 4)
