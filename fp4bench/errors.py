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
    INTERRUPTED = 130


class BenchError(Exception):
    """Base of what fp4bench raises on purpose."""

    exit_code = Exit.ERROR


class UsageError(BenchError):
    """The user asked for something that cannot be."""

    exit_code = Exit.USAGE
