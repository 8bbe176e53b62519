# SPDX-License-Identifier: Apache-2.0
"""Compiles the walk over pages for a Hopper GPU, which needs none, and prints what its code is made of as JSON.

Run as a process of its own: where tests run, kernels are loaded for Triton's interpreter.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shplb.kernels.band_attention import _band_attention_kernel as kernel
from shplb.kernels.band_attention import compile_options

_TOOL = Path(nvidia.__file__).with_name("bin") / "cuobjdump"
_HALVES = ("q_ptr", "k_ptr", "v_ptr")
_FLOATS = ("outputs_ptr", "weights_ptr", "largest_ptr")


def type_of(name: str) -> str:
    if name in _HALVES:
        return "*bf16"
    if name in _FLOATS:
        return "*fp32"
    return "*i32" if name.endswith("_ptr") else "fp32" if name == "scale" else "i32"


def main(lanes: int, rows: int, head_dim: int) -> None:
    constants, options = compile_options(4, 4 // lanes, lanes, rows, head_dim, 3, 4)
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else type_of(name) for name in names}
    aligned = [name for name in names if name.endswith(("_ptr", "stride"))]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(made.asm["cubin"])
        usage = subprocess.run([_TOOL, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    code = made.asm["ttgir"]
    facts = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    facts["shared"] = made.metadata.shared
    facts["tensor_core_products"] = len(re.findall(r"ttng\.warp_group_dot %", code))
    facts["loads_in_flight"] = max(map(int, re.findall(r"ttg\.async_wait.*num = (\d+)", code)), default=0)
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
