# SPDX-License-Identifier: Apache-2.0
"""``shplb quickstart``: a small real model, profiled, planned and served with S-HPLB, in one command."""

from shplb.quickstart.run import run

__all__ = ["run"]
