# SPDX-License-Identifier: Apache-2.0
"""What budgets cost in quality, on documents that calibration never saw: candidates, measurement, recommendation."""
