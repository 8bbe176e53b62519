# SPDX-License-Identifier: Apache-2.0
"""Commands of ``shplb``, one module each; registered in ``shplb.cli``."""
