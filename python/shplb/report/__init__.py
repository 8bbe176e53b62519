# SPDX-License-Identifier: Apache-2.0
"""One HTML file that shows a plan to a person: balance, budgets, curves, a step, and bench results."""

from shplb.report.benches import BenchFileError
from shplb.report.figures import write_figures
from shplb.report.page import ReportError, make_report

__all__ = ["BenchFileError", "ReportError", "make_report", "write_figures"]
