"""What sweeps found: gzip JSON lines, one file a call, in which a row is written as soon as it is known."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TextIO, cast

import torch

SHOWN = 10  # failures


class Record:
    """The rows in a folder that say something of these kernels, those of earlier calls first.

    A row has a `key`, and `why` it failed or None. `source` is the digest of what verdicts rest on.
    """

    def __init__(self, folder: Path, source: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.jsonl.gz"
        self._path, self._file = folder / name, cast(TextIO | None, None)
        self._source = source
        prior = [row for row in rows(folder) if row["source"] == self._source]
        self.done = {row["key"] for row in prior}
        self.failed = [row for row in prior if row["why"]]

    def add(self, row: dict[str, Any]) -> None:
        """Write the row, with what it was found with."""
        if self._file is None:
            self._file = cast(TextIO, gzip.open(self._path, "wt"))
        whole = row | {"source": self._source, "torch": str(torch.__version__)}
        self._file.write(json.dumps(whole) + "\n")
        self._file.flush()  # what a call that is killed has proven stays
        self.done.add(row["key"])
        self.failed += [row] if row["why"] else []

    def show_failures(self) -> None:
        for row in self.failed[:SHOWN]:
            print(f"! {row['key']}: {row['why']}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """All whole lines: a call that was killed leaves a file without its end."""
    for file in sorted(folder.glob("*.jsonl.gz")):
        try:
            with gzip.open(file, "rt") as source:
                for line in source:
                    yield json.loads(line)
        except (EOFError, json.JSONDecodeError):
            continue
