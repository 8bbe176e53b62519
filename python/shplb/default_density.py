# SPDX-License-Identifier: Apache-2.0
"""How much attention is computed where nobody says how much."""

#: Mean budget. The least density at which bench_quality.py saw no loss on a real model; no smaller one has been shown
#: to be free of it (docs/quality.md).
DEFAULT_DENSITY = 0.45
