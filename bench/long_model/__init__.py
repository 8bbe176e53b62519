# SPDX-License-Identifier: Apache-2.0
"""Parts of ``make_long_model.py``: sequences to train on, and the training."""
