"""kill -9 at random moments of a tune, each resumed: is anything lost, and does it end alike?

    python scripts/check_kills.py --kills 50

After every kill all rows that were on disk before are there still, no line but a file's last is
damaged, and no candidate is measured twice. The run that is let through in the end must come to the
verdicts that an undisturbed run comes to, and choose the same kernels, but for ties. Exit 1 otherwise.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "scripts")]

import typer  # noqa: E402
from check_repeat import key, results, ties  # noqa: E402
from rich.progress import track  # noqa: E402

from fp4bench import evidence  # noqa: E402
from fp4bench.summary import summarize  # noqa: E402
from fp4bench.trials import to_line  # noqa: E402

SHAPES = ["1x576x576", "8x192x576"]
LATEST = 10.0  # seconds after its start that a run is killed at most


def main(
    kills: int = 50,
    budget: Annotated[str, typer.Option(help="of every run")] = "40s",
    seed: int = 0,
) -> None:
    """Kill, resume, check."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        disturbed, undisturbed = Path(scratch) / "disturbed", Path(scratch) / "undisturbed"
        lost = 0
        known: set[str] = set()
        for _ in track(range(kills), "killing"):
            process = start(disturbed, budget)
            time.sleep(chance.uniform(0.5, LATEST))
            process.kill()
            process.wait()
            lost += lost_rows(disturbed, known)
        for out in (disturbed, undisturbed):
            if start(out, budget).wait():
                raise SystemExit(f"the last run into {out.name} failed")
        runs = [evidence.read(results(out)) for out in (disturbed, undisturbed)]
    one, other = ({key(line): line for line in summarize(run.races)} for run in runs)
    trials = [(t.workload, t.candidate) for t in runs[0].trials]
    twice = len(trials) - len(set(trials))
    differing = [(one[k], other[k]) for k in one if one[k].chosen != other[k].chosen]
    turned = [
        k for k in one if {one[k].speedup.verdict, other[k].speedup.verdict} == {"win", "loss"}
    ]
    unlike = len(differing) - ties(differing)
    print(f"{kills} kills: {lost} rows lost, {len(runs[0].damage)} lines cut, {twice} of "
          f"{len(trials)} trials measured twice, {len(turned)} of {len(one)} verdicts turned, "
          f"{unlike} choices differ by more than a tie")  # fmt: skip
    raise SystemExit(bool(lost or twice or turned or unlike) or one.keys() != other.keys())


def start(out: Path, budget: str) -> subprocess.Popen[bytes]:
    shapes = [part for shape in SHAPES for part in ("--shape", shape)]
    command = [
        sys.executable,
        "-m",
        "fp4bench",
        "tune",
        *shapes,
        "--budget",
        budget,
        "--out",
        str(out),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lost_rows(out: Path, known: set[str]) -> int:
    """How many of the known rows are gone; learns the new ones. Only last lines may be damaged."""
    if not (out / "results").is_dir() or not [*(out / "results").iterdir()]:
        return len(known)
    found = evidence.read(results(out))
    for damage in found.damage:
        last = damage.file.read_bytes().count(b"\n") + 1
        if damage.line != last:
            raise SystemExit(f"damaged within a file: {damage}")
    rows = {to_line(row) for row in found.rows}
    gone = len(known - rows)
    known |= rows
    return gone


if __name__ == "__main__":
    typer.run(main)
