"""The HTML report, from recorded rows alone."""

from fp4bench.report.page import render, write

__all__ = ["render", "write"]
