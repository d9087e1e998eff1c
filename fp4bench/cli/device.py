"""Commands that speak of the device at hand: `doctor` and `validate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fp4bench import doctor as doctor_module
from fp4bench import evidence, present
from fp4bench.cli.options import DeviceOption, JsonOption, surroundings
from fp4bench.cli.output import print_json, stderr, stdout, warn_of
from fp4bench.errors import Exit
from fp4bench.timing import default_policy
from fp4bench.validation import from_results, from_table, validate_all
from fp4bench.worker import Setup
from fp4kernels.tables import Table


def doctor(device: DeviceOption = None, as_json: JsonOption = False) -> None:
    """Say what this machine can run, native or emulated, and how to mend what it cannot."""
    where, toolchain = surroundings(device)
    if as_json:
        print_json(doctor_module.to_json(where, toolchain))
        return
    stdout.print(f"{where.name} ({where.arch}), {where.cores} cores, "
                 f"{where.cache_bytes >> 20} MiB last-level cache", highlight=False)  # fmt: skip
    for name, version in asdict(toolchain).items():
        if version is not None:
            stdout.print(f"{name.replace('_', ' ')}: {version}", highlight=False)
    stdout.print(present.abilities_table(doctor_module.abilities(where, toolchain)))
    for finding in doctor_module.findings(where, toolchain):
        stdout.print(f"! {finding.problem}\n  fix: {finding.fix}", highlight=False)


def validate(
    path: Annotated[Path, typer.Argument(help="a table.json, or a results file or folder")],
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put every chosen kernel through the gate again, on fresh inputs. Exit 4 if one fails."""
    where, toolchain = surroundings(device)
    if path.suffix == ".json":
        table = Table.read(path)
        table.require(where)
        pairs = from_table(table)
    else:
        found = evidence.read(path)
        warn_of(found)
        pairs = from_results(found)
    setup = Setup(where, toolchain, default_policy(where.kind, "warm"), seed=0)
    checks = validate_all(pairs, setup, stderr)
    failed = [check for check in checks if check.reason is not None]
    if as_json:
        print_json({"checks": [check.to_json() for check in checks]})
    else:
        for check in failed:
            stdout.print(f"FAILED {check.label}: {check.reason}", markup=False, highlight=False)
        stdout.print(f"{len(checks) - len(failed)} of {len(checks)} kernels passed the gate")
    if failed:
        raise typer.Exit(Exit.GATE_FAILED)
