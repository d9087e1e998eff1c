"""What earlier runs chose: tables that ship with fp4bench, made on devices of the developers.

They only say what to try first, and what to keep where nothing is clearly faster: every time that a
run reports was measured in that run.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import as_file, files

from fp4kernels.attention.workload import Workload
from fp4kernels.devices import Device
from fp4kernels.tables import Table
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

Choice = tuple[Workload, Candidate]


def choices(device: Device) -> list[Choice]:
    """Of the tables made on the architecture of `device`. TableError if a table is damaged."""
    return [one for table in _tables() if table.device.arch == device.arch for one in _of(table)]


def _tables() -> Iterator[Table]:
    for entry in sorted(files("search_spaces.known").iterdir(), key=lambda one: one.name):
        if entry.name.endswith(".json"):
            with as_file(entry) as path:
                yield Table.read(path)


def _of(table: Table) -> Iterator[Choice]:
    for (_, n, k, _), plan in table.plans.items():
        for m, candidate in plan.buckets:
            yield GemmWorkload(m, n, k), candidate
    for key, chosen in table.attention.items():
        for batch, keys, candidate in chosen.buckets:
            yield key.workload(batch, keys), candidate
