"""One call on a new device: prove every kernel, time it beside its baselines, tune the presets.

    python scripts/device_suite.py --out DIR --budget 500s

Runs from a checkout with nothing installed but the dependencies. Each step is a process of its own, which
is killed when its share of the budget is used up: a fault ends one step, is recorded, and the rest goes
on. What DIR holds already is not measured again, and the least measured work comes first, so that a
second call goes on from there. Files written: *.jsonl (the device's limits, trials, races of default,
tuned and every baseline, cold and warm, graph and eager, with energy), steps/*.json (each step's rows or
error, and its log beside), quantize.json, table.json, report.html. Exit 1 where a step is not OK.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "scripts")]

import typer  # noqa: E402
from device import steps  # noqa: E402
from device.steps import Step  # noqa: E402

from fp4bench import locks  # noqa: E402
from fp4kernels.devices import probe_device  # noqa: E402

# square and odd sizes from decode to prefill: every kernel is proven and timed on these first
PROBES = ["1x4096x4096", "16x4096x4096", "512x4096x4096", "4096x4096x4096", "37x1000x4128"]
# name → share of the budget; in this order where nothing is measured yet
SHARES = {
    "probes": 0.22, "race": 0.14, "attention": 0.12, "epilogues": 0.1, "dense": 0.06,
    "quantizers": 0.12, "fused": 0.04, "experts": 0.05, "invariance": 0.05, "models": 0.5,
}  # fmt: skip
GO_ON = ("probes", "models")
ON_GPUS = ("quantizers",)
SUMMARY = 15.0  # seconds, kept for the end


def main(
    out: Annotated[Path, typer.Option(help="folder that gets all files")],
    budget: Annotated[str, typer.Option(help="wall time in seconds, such as 500s")] = "500s",
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    preset: Annotated[str | None, typer.Option(help="a model of search_spaces/models")] = None,
    probe: Annotated[list[str] | None, typer.Option(help="MxNxK instead of the probes")] = None,
    only: Annotated[list[str] | None, typer.Option(help="these steps alone")] = None,
) -> None:
    """Prove, time and tune; everything measured is on disk the moment it is known."""
    start, seconds = time.monotonic(), float(budget.rstrip("s"))
    where = probe_device(device)
    unknown = sorted({*(only or [])} - {*SHARES})
    if unknown:
        raise SystemExit(f"--only names steps of {', '.join(SHARES)}, but got {unknown[0]}")
    arguments = ["--out", str(out), "--device", where.kind]
    arguments += [] if preset is None else ["--preset", preset]
    arguments += [word for one in probe or PROBES for word in ("--probe", one)]
    script = ROOT / "scripts" / "device" / "part.py"

    def step(name: str, share: float) -> Step:
        return Step(name, steps.python(script, name, *arguments), share, name in GO_ON)

    planned = [
        step(name, share) for name, share in SHARES.items()
        if name in (only or SHARES) and (where.kind == "cuda" or name not in ON_GPUS)
    ]  # fmt: skip
    with locks.exclusive(where):
        found = steps.run(planned, out, seconds - SUMMARY, say)
        left = seconds - (time.monotonic() - start)
        found |= steps.run([Step("summary", steps.python(script, "summary", *arguments), 1.0, True)],
                           out, max(left, SUMMARY), say)  # fmt: skip
    raise SystemExit(any(status != "OK" for status in found.values()))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
