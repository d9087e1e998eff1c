"""One call on a new device: prove every kernel, time it beside its baselines, tune the presets.

    python scripts/device_suite.py --out DIR --budget 500s

Runs from a checkout with nothing installed but the dependencies. What DIR holds already is not
measured again, and the least measured work comes first, so that a second call goes on from there.
Files written: *.jsonl (the device's limits, trials, races of default, tuned and every baseline, cold
and warm, graph and eager, with energy), quantize.json, table.json, report.html.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "scripts")]

import check_quantize  # type: ignore[import-not-found]  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from fp4bench import evidence, export, locks, present, report  # noqa: E402
from fp4bench.benching import Benchmark, Plan  # noqa: E402
from fp4bench.cli.options import (  # noqa: E402
    DEFAULT_PRESET,
    DEFAULT_RECIPES,
    LEAST_BUDGET,
)
from fp4bench.evidence import Evidence, Recorder  # noqa: E402
from fp4bench.ledger import Outcome  # noqa: E402
from fp4bench.limits import latest  # noqa: E402
from fp4bench.progress import BenchProgress, TuneProgress  # noqa: E402
from fp4bench.summary import summarize  # noqa: E402
from fp4bench.timing import bench_policies, default_policy  # noqa: E402
from fp4bench.tuner import Options, Tuner  # noqa: E402
from fp4bench.worker import Setup  # noqa: E402
from fp4bench.workloads import Problem, from_preset, from_shapes, unique  # noqa: E402
from fp4kernels.devices import probe_device, probe_toolchain  # noqa: E402

# square and odd sizes from decode to prefill: every kernel is proven and timed on these first
PROBES = ["1x4096x4096", "16x4096x4096", "512x4096x4096", "4096x4096x4096", "37x1000x4128"]
PROBE_SHARE = 0.3  # of the budget tunes the probes, then they are raced; the rest is the preset's
RACE_SECONDS = 2.0  # of sampling, for each probe


def main(
    out: Annotated[Path, typer.Option(help="folder that gets all files")],
    budget: Annotated[str, typer.Option(help="wall time in seconds, such as 500s")] = "500s",
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    preset: Annotated[str | None, typer.Option(help="a model of search_spaces/models")] = None,
    probe: Annotated[list[str] | None, typer.Option(help="MxNxK instead of the probes")] = None,
) -> None:
    """Prove, time and tune; everything measured is on disk the moment it is known."""
    start, seconds = time.monotonic(), float(budget.rstrip("s"))
    console = Console(stderr=True)
    where = probe_device(device)
    setup = Setup(where, probe_toolchain(where.kind), default_policy(where.kind, "cold"), seed=0)
    out.mkdir(parents=True, exist_ok=True)
    probes, models = (
        from_shapes(probe or PROBES),
        from_preset(preset or DEFAULT_PRESET[where.kind], None),
    )
    with locks.exclusive(where):
        outcome = tune(out, unique(probes), setup, PROBE_SHARE * seconds, console)
        console.print(present.outcome_text(outcome))
        race(out, unique(probes), setup, console)
        if where.kind == "cuda":
            check_quantize.measure(where, out)
        left = seconds - (time.monotonic() - start)
        outcome = tune(out, unique(models), setup, max(left, LEAST_BUDGET), console)
        console.print(present.outcome_text(outcome))
    found = evidence.read(out)
    lines = summarize(found.races)
    Console(width=120).print(present.results_table(lines, 120, outcome.limits))
    export.make_table(found, [out.name]).save(out / "table.json")
    report.write(out / "report.html", found, out.name)


def tune(
    out: Path, problems: list[Problem], setup: Setup, seconds: float, console: Console
) -> Outcome:
    """Tune `problems`, those without a race in `out` first."""
    prior = evidence.read(out)
    raced = {race.workload for race in prior.races}
    ordered = sorted(problems, key=lambda problem: problem.workload in raced)
    recipes = tuple(DEFAULT_RECIPES[setup.device.kind])
    options = Options(recipes, setup, effort="quick", budget=seconds)
    with Recorder(out) as recorder, TuneProgress(console, seconds) as progress:
        return Tuner(options, recorder, Evidence(prior.rows, ()), progress).run(ordered)


def race(out: Path, problems: list[Problem], setup: Setup, console: Console) -> None:
    """Default, tuned and baselines under every policy, beside the device's limits."""
    prior = evidence.read(out)
    choices = {(x.race.workload, x.race.recipe): x.chosen for x in summarize(prior.races)}
    recipes, policies = tuple(DEFAULT_RECIPES[setup.device.kind]), bench_policies(setup.device.kind)
    plan = Plan(recipes, policies, RACE_SECONDS, 1, choices, latest(prior, setup.device))
    with Recorder(out) as recorder, BenchProgress(console) as progress:
        outcome = Benchmark(setup, plan, recorder, progress).run(problems)
    if outcome.limits is not None:
        console.print(present.limits_text(outcome.limits))
    Console(width=120).print(present.bench_table(outcome.races, outcome.limits, 120))
    for name, why in outcome.absent.items():
        console.print(f"absent: {name}: {why}", markup=False)
    for problem in outcome.problems:
        console.print(f"! {problem}", markup=False)


if __name__ == "__main__":
    typer.run(main)
