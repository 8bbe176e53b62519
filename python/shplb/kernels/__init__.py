# SPDX-License-Identifier: Apache-2.0
"""Attention kernels: page scores, page selection and sparse attention over kept pages."""
