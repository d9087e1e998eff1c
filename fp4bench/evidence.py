"""The one truth: append-only JSON Lines, one file per process; finished sets may be gzipped.

Files of a folder are read by name, and a new file's name sorts after all that are there: the order
of rows is the order of recording, whatever the clock said.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, cast

import pydantic
from filelock import FileLock, Timeout

from fp4bench import listing, migrations
from fp4bench.errors import BenchError
from fp4bench.trials import (
    AnyRow,
    FailedTrial,
    FormatAccuracy,
    Limits,
    PassedTrial,
    Race,
    Row,
    to_line,
)  # fmt: skip
from fp4kernels.registry import candidate_from_json

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".jsonl", ".jsonl.gz")
MAX_LINE = 16 << 20  # bytes; a row of a thousand samples is a thousandth of it
_ROW: pydantic.TypeAdapter[AnyRow] = pydantic.TypeAdapter(Row)
_STAMP = "%Y%m%dT%H%M%S"


class DamageWarning(UserWarning):
    """Some of the evidence could not be read."""


@dataclass(frozen=True)
class Damage:
    """A line that could not be read, or a whole file (line 0); what is around it was read."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{where}: skipped: {self.reason}"


@dataclass(frozen=True)
class Evidence:
    """All rows of a set of files in the order of recording, and what was unreadable in them."""

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

    @property
    def accuracies(self) -> Iterator[FormatAccuracy]:
        return (row for row in self.rows if isinstance(row, FormatAccuracy))


def read(path: Path) -> Evidence:
    """Rows of one file, or of all *.jsonl and *.jsonl.gz in a folder, by name.

    Raises BenchError if `path` cannot be read at all; anything less is Damage.
    """
    try:
        path.stat()
        folder = path.is_dir()
        files = _files(path) if folder else [path]
    except FileNotFoundError:
        raise BenchError(f"results must be a file or a folder, but {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read results from {path}: {_reason(error)}") from error
    rows: list[AnyRow] = []
    damage: list[Damage] = []
    for file in files:
        _read_file(file, rows, damage, regular=folder)
    if not folder and not rows and [found.line for found in damage] == [0]:
        raise BenchError(f"cannot read results from {path}: {damage[0].reason}")
    return Evidence(tuple(rows), tuple(damage))


def frame(source: Path | Evidence) -> pd.DataFrame:
    """Any result set as one flat table: a row for each trial, each entry of a race, each accuracy.

    The columns are in results/README.md. Damage is a DamageWarning.
    """
    found = source if isinstance(source, Evidence) else read(source)
    if found.damage and not isinstance(source, Evidence):
        more = f" (and {len(found.damage) - 1} more)" if len(found.damage) > 1 else ""
        warnings.warn(f"{found.damage[0]}{more}", DamageWarning, stacklevel=2)
    return listing.flat(found.rows)


def write(path: Path, rows: Iterable[AnyRow]) -> None:
    """Rows of the current schema as a new file, which replaces `path` whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as raw:
                if path.suffix == ".gz":  # no name and no time in it: the same rows, the same bytes
                    with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                        packed.writelines(to_line(row).encode() for row in rows)
                else:
                    raw.writelines(to_line(row).encode() for row in rows)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}; pass another -o FILE") from error


class Recorder:
    """Appends rows to a new file in `folder`, which no other process may record in meanwhile.

    Every row is one whole line, so a kill loses at most the line being written, and a write that
    fails leaves none of its line.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "tune.lock", timeout=0)
            self._lock.acquire()
            self.path = folder / f"{_next_stem(folder, datetime.now(UTC))}.jsonl"
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
            self._file = os.open(self.path, flags, 0o644)
        except Timeout:
            raise BenchError(
                f"one tuner at a time may use a results folder, but another holds {folder}; "
                "wait for it, or pass another --out"
            ) from None
        except OSError as error:
            raise BenchError(
                f"cannot write results to {folder}: {error.strerror}; pass --out DIR"
            ) from error
        self._end = 0  # of the last whole line

    def append(self, row: pydantic.BaseModel) -> None:
        line, written = to_line(row).encode(), 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except BaseException as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            if isinstance(error, OSError):
                raise BenchError(
                    f"a row is written whole or not at all, but {self.path} took {written} of "
                    f"{len(line)} bytes ({error.strerror}); make room and run again: the rows "
                    "before it are kept"
                ) from error
            raise
        self._end += written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
        with suppress(FileNotFoundError):
            if self.path.stat().st_size == 0:
                self.path.unlink()
        self._lock.release()


def _files(folder: Path) -> list[Path]:
    found = [file for file in folder.iterdir() if file.name.endswith(SUFFIXES)]
    return sorted(found, key=lambda file: (_stem(file), file.name))


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".jsonl")


def _next_stem(folder: Path, now: datetime) -> str:
    """A name for a new file: the time, or what sorts after every name that is there."""
    stem = f"{now:{_STAMP}}-{os.getpid()}"
    last = max(map(_stem, _files(folder)), default="")
    if stem > last:
        return stem
    match = re.fullmatch(r"(.*?)(\d{8}T\d{6})-\d+", last, re.DOTALL)
    with suppress(ValueError, OverflowError):  # digits that are no date
        if match is not None:
            after = datetime.strptime(match[2], _STAMP).replace(tzinfo=UTC) + timedelta(seconds=1)
            return f"{match[1]}{max(after, now):{_STAMP}}-{os.getpid()}"
    return f"{last}-{stem}"


def _read_file(file: Path, rows: list[AnyRow], damage: list[Damage], regular: bool) -> None:
    number = 0
    try:
        if regular and not file.is_file():  # a pipe would be waited for
            raise OSError(0, "not a regular file")
        with _open(file) as stream:
            while line := stream.readline(MAX_LINE):
                number += 1
                try:
                    if len(line) == MAX_LINE and not line.endswith(b"\n"):
                        _skip_line(stream)
                        raise ValueError(f"a line holds at most {MAX_LINE >> 20} MiB")
                    if line.strip():
                        rows.append(_row(line))
                except (ValueError, RecursionError) as error:
                    damage.append(Damage(file, number, _reason(error)))
    except (OSError, EOFError, zlib.error) as error:
        at = number + 1 if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile) else number
        damage.append(Damage(file, at, _reason(error)))


def _open(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _skip_line(stream: IO[bytes]) -> None:
    while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
        pass


def _row(line: bytes) -> AnyRow:
    """ValueError where the line is no row that could be written again as it is."""
    row = _ROW.validate_python(migrations.parsed(line))
    if row.time.tzinfo is None:
        raise ValueError("time: a row's time has an offset from UTC")
    with suppress(OverflowError):
        row.time.astimezone(UTC)
        for name in ("candidate_values", "default_values", "tuned_values"):
            values = getattr(row, name, None)
            if values is not None and candidate_from_json(values).to_json() != values:
                raise ValueError(f"{name}: fields that no candidate has")
        return row
    raise ValueError("time: out of range")


def _reason(error: Exception) -> str:
    """One printable line."""
    match error:
        case pydantic.ValidationError():
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            text = f"{where}: {first['msg']}" if where else str(first["msg"])
        case json.JSONDecodeError(msg=str(problem), pos=int(at)):
            text = f"no JSON: {problem}, at character {at + 1}"
        case RecursionError():
            text = "nested too deeply"
        case EOFError() | zlib.error():
            text = f"the gzip file is cut or damaged here ({error})"
        case OSError(strerror=str(problem)):
            text = problem
        case _:
            text = str(error)
    return "".join(c if c.isprintable() else "�" for c in text)[:300]
