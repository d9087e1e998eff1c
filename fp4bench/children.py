"""Processes that may die, one for each thread that asks."""

from __future__ import annotations

import math
import threading

from fp4bench.child import Child, ChildDiedError, ChildLateError


class Children:
    """Each runs `python -m module`; a thread's next question after a death starts a new one, and so does
    the one after `most` answers."""

    def __init__(self, module: str, most: float = math.inf) -> None:
        self._module, self._most = module, most
        self._own = threading.local()
        self._all: set[Child] = set()

    def ask(self, question: bytes, limit: float) -> bytes:
        """The answer. ChildDiedError or ChildLateError; after either that process is gone."""
        child: Child | None = getattr(self._own, "child", None)
        if child is None:
            child = self._own.child = Child(self._module, b"", {})
            self._own.answers = 0
            self._all.add(child)
        try:
            answer = child.ask(question, limit)
        except (ChildDiedError, ChildLateError):
            self._forget(child)
            raise
        self._own.answers += 1
        if self._own.answers >= self._most:
            self._forget(child)
            child.stop()
        return answer

    def _forget(self, child: Child) -> None:
        self._own.child = None
        self._all.discard(child)

    def __len__(self) -> int:
        """How many run."""
        return len(self._all)

    def kill(self) -> None:
        """End what runs, from any thread; whoever asks is told."""
        for child in self._all.copy():
            child.kill()

    def stop(self) -> None:
        """Once no thread asks any more."""
        for child in self._all:
            child.stop()
        self._all.clear()
