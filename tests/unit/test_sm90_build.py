# SPDX-License-Identifier: Apache-2.0
"""Why the sm90 kernel can't be built or used is one sentence, and names the cause."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shplb.kernels import flashinfer_sm90 as sm90

NINJA = "Ninja build failed. Output:\nfoo.cu:3:10: fatal error: curand_kernel.h: No such file\nninja: build stopped: x."


@pytest.mark.parametrize(
    ("output", "reason"), [(NINJA, "curand_kernel.h"), ("no nvcc", "no nvcc"), ("", "RuntimeError")]
)
def test_a_failed_build_names_its_cause(output: str, reason: str) -> None:
    def build(verbose: bool, need_lock: bool) -> None:
        raise RuntimeError(output)

    with pytest.raises(sm90.KernelUnavailableError, match=rf"can't be compiled \(.*{reason}.*\); install") as caught:
        sm90._build(SimpleNamespace(build=build))
    assert "\n" not in str(caught.value)


def test_what_has_no_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sm90.KernelUnavailableError, match=r"torch\.float32 and head_dim 128"):
        sm90.jit_spec(torch.float32, 128)
    with pytest.raises(sm90.KernelUnavailableError, match="head_dim 96"):
        sm90.jit_spec(torch.bfloat16, 96)
    with pytest.raises(sm90.KernelUnavailableError, match=r"no GPU of compute capability 9\.0"):
        sm90.Sm90Prefill(torch.bfloat16, 128, torch.device("cpu"))
    monkeypatch.setattr(sm90, "version", lambda name: "0.7.0")
    with pytest.raises(
        sm90.KernelUnavailableError, match=r"FlashInfer 0\.7\.0 is installed.*0\.6\.12; install that one"
    ):
        sm90.jit_spec(torch.bfloat16, 128)


class _Spec:
    """A module that is compiled already: building it again would need ninja."""

    is_compiled = True

    def __init__(self, folder: Path, load: Any) -> None:
        self.lock_path, self._library, self.load = folder / "lock", folder / "module.so", load

    def get_library_path(self) -> Path:
        return self._library


def test_a_compiled_kernel_is_only_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sm90, "jit_spec", lambda dtype, head_dim: _Spec(tmp_path, lambda library: library.name))
    assert sm90._load(torch.bfloat16, 128) == "module.so"
    assert sm90.build(torch.bfloat16, 128) == tmp_path / "module.so"


def test_a_broken_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(library: Path) -> None:
        raise OSError("file too short\nand more")

    monkeypatch.setattr(sm90, "jit_spec", lambda dtype, head_dim: _Spec(tmp_path, load))
    with pytest.raises(sm90.KernelUnavailableError, match=r"can't be loaded \(file too short\); clear") as caught:
        sm90._load(torch.bfloat16, 128)
    assert "\n" not in str(caught.value)
