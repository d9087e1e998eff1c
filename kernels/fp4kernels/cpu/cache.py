"""The folder of compiled objects: one writer for each, and no more bytes than a bound."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MOST_BYTES = 256 << 20  # some ten thousand kernels
SPARED_SECONDS = 3600.0  # what was used so recently may be about to be loaded
_POLL_SECONDS = 0.01


@contextlib.contextmanager
def held(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of `path` against every process and thread. TimeoutError after `seconds`.

    The lock is a file beside it, gone afterwards; the system frees that of a process that dies.
    """
    lock, end = path.with_name(path.name + ".lock"), time.monotonic() + seconds
    while True:
        with lock.open("w") as file:
            _wait(file, end)
            if not _is(file, lock):
                continue  # who held it has removed it, and the next one may hold another
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def used(path: Path) -> bool:
    """Whether `path` is there; then it counts as used just now. Call with its lock held."""
    status = _status(path)
    if status is not None:
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # when it was made stays as it is
    return status is not None


def trim(folder: Path, most: int = MOST_BYTES, spared: float = SPARED_SECONDS) -> None:
    """Remove objects, those first that were not used for the longest time, until at most `most`
    bytes are left, and what killed processes left behind. Nothing used within `spared` seconds, or
    held, is touched. A process keeps what it has loaded, whatever becomes of the file.
    """
    before = time.time() - spared
    entries = [(path, status) for path in folder.iterdir() if (status := _status(path))]
    for path, status in entries:
        if _last(status) < before:
            _clear(path)
    objects = [(path, status) for path, status in entries if path.suffix == ".so"]
    total = sum(status.st_size for _, status in objects)
    for path, status in sorted(objects, key=lambda entry: _last(entry[1])):
        if total <= most or _last(status) >= before:
            return
        with contextlib.suppress(TimeoutError), held(path, 0):
            now = _status(path)
            if now is not None and _last(now) < before:  # else it was used since
                path.unlink()
            total -= status.st_size


def _wait(file: IO[str], end: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError from None
            time.sleep(_POLL_SECONDS)


def _is(file: IO[str], path: Path) -> bool:
    found = _status(path)
    return found is not None and os.path.samestat(os.fstat(file.fileno()), found)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process was faster
        return None


def _last(status: os.stat_result) -> float:
    """When it was used or made."""
    return max(status.st_atime, status.st_mtime)


def _clear(path: Path) -> None:
    """Remove a folder that a compiler wrote into, or a lock, since whoever made it has died."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.suffix == ".lock":
        with contextlib.suppress(TimeoutError), held(path.with_suffix(""), 0):
            pass  # it goes when it is let go
