# SPDX-License-Identifier: Apache-2.0
"""What is said where nobody says how much attention to compute; dense is the default then.

No density below 0.5 has met the rule for "no loss" at any length (docs/quality.md), so which one to take is not ours to
decide.
"""

ADVICE = "no density is proven free of loss: `shplb compare` measures what yours would cost, 0.45 is one to begin with"
