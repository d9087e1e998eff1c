"""Tunes and races of whole problems; what the folder holds already is not measured again."""

from __future__ import annotations

from pathlib import Path

import check_quantize
from rich.console import Console

from device.place import Place, Row
from fp4bench import evidence, export, present, report
from fp4bench.benching import Benchmark, Plan
from fp4bench.cli.options import DEFAULT_PRESET, DEFAULT_RECIPES, LEAST_BUDGET
from fp4bench.evidence import Evidence, Recorder
from fp4bench.limits import latest
from fp4bench.progress import BenchProgress, TuneProgress
from fp4bench.summary import summarize
from fp4bench.timing import bench_policies, default_policy
from fp4bench.tuner import Options, Tuner
from fp4bench.worker import Setup
from fp4bench.workloads import Problem, from_preset, from_shapes, unique

RACE_SECONDS = 2.0  # of sampling, for each probe


def probes(place: Place, out: Path, shapes: list[str]) -> list[Row]:
    return tune(place, out, unique(from_shapes(shapes)))


def models(place: Place, out: Path, preset: str | None) -> list[Row]:
    name = preset or DEFAULT_PRESET[place.device.kind]
    return tune(place, out, unique(from_preset(name, None)))


def tune(place: Place, out: Path, problems: list[Problem]) -> list[Row]:
    """Those without a race in `out` first."""
    prior = evidence.read(out)
    raced = {race.workload for race in prior.races}
    ordered = sorted(problems, key=lambda problem: problem.workload in raced)
    seconds = max(place.seconds, LEAST_BUDGET)
    recipes = tuple(DEFAULT_RECIPES[place.device.kind])
    options = Options(recipes, setup(place), effort="quick", budget=seconds)
    console = Console(stderr=True)
    with Recorder(out) as recorder, TuneProgress(console, seconds) as progress:
        outcome = Tuner(options, recorder, Evidence(prior.rows, ()), progress).run(ordered)
    return [{"case": "tuned", "outcome": str(present.outcome_text(outcome))}]


def race(place: Place, out: Path, shapes: list[str]) -> list[Row]:
    """Default, tuned and baselines under every policy, beside the device's limits."""
    prior, kind = evidence.read(out), place.device.kind
    choices = {(x.race.workload, x.race.recipe): x.chosen for x in summarize(prior.races)}
    recipes, known = tuple(DEFAULT_RECIPES[kind]), latest(prior, place.device)
    plan = Plan(recipes, bench_policies(kind), RACE_SECONDS, 1, choices, known)
    with Recorder(out) as recorder, BenchProgress(Console(stderr=True)) as progress:
        bench = Benchmark(setup(place), plan, recorder, progress)
        outcome = bench.run(unique(from_shapes(shapes)))
    Console(width=120).print(present.bench_table(outcome.races, outcome.limits, 120))
    absent = [{"case": f"absent: {name}", "why": why} for name, why in outcome.absent.items()]
    return [*absent, *({"case": "problem", "error": str(one)} for one in outcome.problems)]


def quantizers(place: Place, out: Path) -> list[Row]:
    return [{"case": "marks", "met": check_quantize.measure(place.device, out)}]


def summary(place: Place, out: Path) -> list[Row]:
    """table.json and report.html of all that is measured, and a table in the log."""
    found = evidence.read(out)
    limits = latest(found, place.device)
    Console(width=120).print(present.results_table(summarize(found.races), 120, limits))
    export.make_table(found, [out.name]).save(out / "table.json")
    report.write(out / "report.html", found, out.name)
    return [{"case": "summary", "races": len(list(found.races)), "trials": len(list(found.trials))}]


def setup(place: Place) -> Setup:
    kind = place.device.kind
    return Setup(place.device, place.toolchain, default_policy(kind, "cold"), seed=0)
