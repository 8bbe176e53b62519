# SPDX-License-Identifier: Apache-2.0
"""How much attention is computed where nobody says how much."""

#: Mean budget. The least density tried whose NLL is within the limit of the rule for "no loss"; the whole rule is not
#: yet met below 0.5 (docs/quality.md).
DEFAULT_DENSITY = 0.45
