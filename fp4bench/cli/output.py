"""What commands print with: data on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from fp4bench.errors import BenchError
from fp4bench.evidence import Evidence
from fp4kernels.tables import Table

stderr = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
stdout = Console(width=None if sys.stdout.isatty() else 120)


def say(line: str) -> None:
    """One line on stderr, as it is."""
    stderr.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(values: dict[str, Any], schema: int = 1) -> None:
    print(json.dumps({"schema": schema, **values}, indent=1))


def warn_of(found: Evidence) -> None:
    for damage in found.damage:
        say(str(damage))


def save(table: Table, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error
