"""What the command line turns into one line and an exit code."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, as documented in the README."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NO_DEVICE = 3
    GATE_FAILED = 4
    REGRESSION = 5  # compare: a candidate is slower beyond the threshold
    INTERRUPTED = 130  # Ctrl-C (SIGINT); what was measured is kept
    TERMINATED = 143  # SIGTERM; what was measured is kept


class BenchError(Exception):
    """Base of what fp4bench raises on purpose."""

    exit_code = Exit.ERROR


class UsageError(BenchError):
    """The user asked for something that cannot be."""

    exit_code = Exit.USAGE


class OperandsError(BenchError):
    """A problem's operands could not be made: none of its candidates can be measured."""
