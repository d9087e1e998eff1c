"""Ctrl-C and SIGTERM: the first ends a command in order, a second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from fp4bench.errors import Exit

_CODES = {signal.SIGINT: Exit.INTERRUPTED, signal.SIGTERM: Exit.TERMINATED}
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


class Interrupts:
    """While entered, both signals raise KeyboardInterrupt; `code` is then set."""

    def __init__(self) -> None:
        self.code: Exit | None = None
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        for number in _CODES:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = _CODES[signal.Signals(number)]
        if self.code is not None:
            self._end_at_once(code)
        self.code = code
        raise KeyboardInterrupt

    @staticmethod
    def _end_at_once(code: Exit) -> None:
        """Without clean-up, which may be what hangs; rows are on disk, files are replaced whole."""
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        os.write(2, f"{cursor}\ninterrupted again: ended at once\n".encode())
        os._exit(code)
