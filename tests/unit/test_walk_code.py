# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of the walk over pages: its speed hangs on registers and on loads that nothing waits for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOPPER_SHARED_BYTES = 227 * 1024


@pytest.mark.parametrize(("lanes", "rows", "head_dim"), [(4, 16, 128), (4, 32, 64)])
def test_the_walk_stays_in_registers_and_loads_ahead(lanes: int, rows: int, head_dim: int) -> None:
    script = Path(__file__).with_name("compiled_walk.py")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script), str(lanes), str(rows), str(head_dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["LOCAL"] == 0
    assert facts["STACK"] <= 16  # accumulators would be thousands
    assert facts["shared"] <= HOPPER_SHARED_BYTES
    # Two products for pages that all rows see, two for a block's own.
    assert facts["tensor_core_products"] == 4
    assert facts["loads_in_flight"] >= 2  # keys and values of at least one page more
