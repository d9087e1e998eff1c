"""The one truth: append-only JSON Lines, one file per process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import pydantic
from filelock import FileLock, Timeout
from pydantic_core import from_json

from fp4bench import migrations
from fp4bench.errors import BenchError
from fp4bench.trials import AnyRow, FailedTrial, Limits, PassedTrial, Race, Row, to_line

_ROW: pydantic.TypeAdapter[AnyRow] = pydantic.TypeAdapter(Row)


@dataclass(frozen=True)
class Damage:
    """A line that could not be read; the lines around it were."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: skipped: {self.reason}"


@dataclass(frozen=True)
class Evidence:
    """All rows of a set of files, and what was unreadable in them."""

    rows: tuple[AnyRow, ...]
    damage: tuple[Damage, ...]

    @property
    def trials(self) -> Iterator[PassedTrial | FailedTrial]:
        return (row for row in self.rows if isinstance(row, PassedTrial | FailedTrial))

    @property
    def races(self) -> Iterator[Race]:
        return (row for row in self.rows if isinstance(row, Race))

    @property
    def limits(self) -> Iterator[Limits]:
        return (row for row in self.rows if isinstance(row, Limits))


def read(path: Path) -> Evidence:
    """Rows of one file, or of all *.jsonl in a folder (by name, so by time).

    Raises BenchError if there is no such file or folder.
    """
    if not path.exists():
        raise BenchError(f"results must be a file or a folder, but {path} does not exist")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    rows: list[AnyRow] = []
    damage: list[Damage] = []
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                rows.append(_ROW.validate_python(migrations.current(from_json(line))))
            except pydantic.ValidationError as error:
                damage.append(Damage(file, number, _first_problem(error)))
            except ValueError as error:  # no JSON, or of another schema
                damage.append(Damage(file, number, str(error)))
    return Evidence(tuple(rows), tuple(damage))


class Recorder:
    """Appends rows to a new file in `folder`, which no other process may record in meanwhile.

    Every row is one write of one whole line, so a kill loses at most the line being written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "tune.lock", timeout=0)
            self._lock.acquire()
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
            self.path = folder / f"{stamp}-{os.getpid()}.jsonl"
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except Timeout:
            raise BenchError(
                f"one tuner at a time may use a results folder, but another holds {folder}; "
                "wait for it, or pass another --out"
            ) from None
        except OSError as error:
            raise BenchError(
                f"cannot write results to {folder}: {error.strerror}; pass --out DIR"
            ) from error

    def append(self, row: AnyRow) -> None:
        line = to_line(row).encode()
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "the disk is full")
        except OSError as error:
            raise BenchError(f"cannot write results to {self.path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
        if self.path.stat().st_size == 0:
            self.path.unlink()
        self._lock.release()


def _first_problem(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
