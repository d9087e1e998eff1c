"""Steps of a suite, each in a process of its own that is killed when its time is up.

A step leaves steps/NAME.json: its status (OK, FAILED or TIMEOUT), the seconds it took, and its rows or
its error. Steps that are not OK come first in the next call, those never tried before those that
failed; a step that is OK runs again only if it goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE = 20.0  # seconds beyond its share that a step has to start and to end
TAIL = 2000  # characters of what a failed step said last


@dataclass(frozen=True)
class Step:
    """`share` is of the whole budget. `command` is run with the seconds as its last argument and
    writes steps/NAME.rows.json."""

    name: str
    command: tuple[str, ...]
    share: float
    goes_on: bool = False


def run(
    steps: Sequence[Step], out: Path, budget: float, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Every step that there is time for, in order of `ordered`; status of each that was run."""
    folder, end, found = out / "steps", time.monotonic() + budget, {}
    folder.mkdir(parents=True, exist_ok=True)
    for step in ordered(steps, folder):
        left = end - time.monotonic()
        if left <= 0:
            say(f"{step.name}: no time left")
            continue
        outcome = run_one(step, folder, min(step.share * budget, left), min(left, GRACE))
        (folder / f"{step.name}.json").write_text(json.dumps(outcome, indent=1) + "\n")
        found[step.name] = outcome["status"]
        say(f"{step.name}: {outcome['status']} in {outcome['seconds']:.0f} s")
    return found


def ordered(steps: Sequence[Step], folder: Path) -> list[Step]:
    """Never tried, then failed, then those that go on; the others are done."""
    status = {step.name: status_of(folder, step.name) for step in steps}
    new = [step for step in steps if status[step.name] is None]
    failed = [step for step in steps if status[step.name] not in (None, "OK")]
    more = [step for step in steps if status[step.name] == "OK" and step.goes_on]
    return new + failed + more


def status_of(folder: Path, name: str) -> str | None:
    file = folder / f"{name}.json"
    return str(json.loads(file.read_text())["status"]) if file.exists() else None


def run_one(step: Step, folder: Path, seconds: float, grace: float) -> dict[str, Any]:
    rows, log = folder / f"{step.name}.rows.json", folder / f"{step.name}.log"
    rows.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("w") as said:
        process = subprocess.Popen(
            [*step.command, str(seconds)], stdout=said, stderr=said, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds + grace)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # what it started may still run, also where this process is interrupted
            if process.poll() is None or code:
                end_group(process)
    outcome: dict[str, Any] = {"step": step.name, "seconds": time.monotonic() - start}
    if code == 0 and rows.exists():
        found = json.loads(rows.read_text())
        rows.unlink()
        wrong = [row for row in found if "error" in row]
        return {**outcome, "status": "FAILED" if wrong else "OK", "rows": found}
    status = "TIMEOUT" if code is None else "FAILED"
    return {**outcome, "status": status, "code": code, "error": log.read_text()[-TAIL:]}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started; it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def python(script: Path, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(script), *arguments)
