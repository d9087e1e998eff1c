"""`fp4bench bench`: default, tuned and baselines side by side, hot and cold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fp4bench import evidence, held, limits, locks, present
from fp4bench.attainment import entries
from fp4bench.benching import Benchmark, Choices, Outcome, Plan
from fp4bench.cli import attention
from fp4bench.cli.options import (
    DeviceOption,
    JsonOption,
    OutOption,
    RecipeOption,
    ShapeOption,
    duration,
    surroundings,
)
from fp4bench.cli.output import print_json, say, stderr, stdout, warn_of
from fp4bench.cli.problems import (
    ModelOption,
    MOption,
    PresetOption,
    problems_of,
    recipes_of,
    runnable,
)  # fmt: skip
from fp4bench.errors import BenchError, Exit
from fp4bench.evidence import Evidence
from fp4bench.held import Held
from fp4bench.progress import BenchProgress
from fp4bench.summary import newest, pooled
from fp4bench.timing import bench_policies, default_policy, eager_policies
from fp4bench.trials import BANDWIDTHS, PEAKS, Limits, Race
from fp4bench.worker import Setup
from fp4bench.workloads import Problem
from fp4kernels.attention.workload import Workload
from fp4kernels.devices import Device
from fp4kernels.errors import TableError
from fp4kernels.tables import Table
from fp4kernels.variants import Candidate


def bench(
    op: attention.OpArgument = attention.OPS[0],
    shape: ShapeOption = None,
    preset: PresetOption = None,
    model: ModelOption = None,
    m: MOption = None,
    context: attention.ContextOption = None,
    batch: attention.BatchOption = None,
    phase: attention.PhaseOption = None,
    page_size: attention.PageSizeOption = None,
    recipe: RecipeOption = None,
    table: Annotated[
        Path | None, typer.Option(help="a table.json to take tuned kernels from")
    ] = None,
    device: DeviceOption = None,
    seconds: Annotated[str, typer.Option(help="of sampling, for each workload")] = "4s",
    passes: Annotated[int, typer.Option(min=1, help="that share the seconds, minutes apart")] = 3,
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="race what linear(batch_invariant=True) runs")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--limits", help="measure the device's limits anew")
    ] = False,
    out: OutOption = Path(),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Race default, tuned and baselines in one interleaved run, hot and cold, against the limits.

    Without --table, what `tune` found and recorded on this device is the tuned kernel.
    """
    asked = attention.Asked(context, batch, phase, page_size)
    where, toolchain = surroundings(device)
    if attention.operation(op) == "attention":
        products = {
            "--shape": shape,
            "--m": m,
            "--table": table,
            "--batch-invariant": batch_invariant,
        }
        attention.only_products(products)
        recipes = attention.recipes_of(recipe)
        problems = attention.problems_of(asked, preset, model, where)
        problems = attention.runnable(problems, recipes, (where, toolchain))
    else:
        asked.refuse()
        recipes = recipes_of(recipe, where)
        problems = runnable(problems_of(shape, preset, model, m, where), recipes)
    policy = eager_policies()[0] if op == "attention" else default_policy(where.kind, "cold")
    setup = Setup(where, toolchain, policy, seed)
    folder = out / "results" / where.slug
    prior = evidence.read(folder) if folder.is_dir() else Evidence((), ())
    warn_of(prior)
    choices = _of_table(Table.read(table), where, problems, recipes) if table else _of(prior, where)
    sampling = duration("seconds", seconds)
    with locks.exclusive(where), evidence.Recorder(folder) as recorder:
        with BenchProgress(stderr) as progress:
            known = None if anew else limits.latest(prior, where)
            plan = Plan(
                recipes,
                eager_policies() if op == "attention" else bench_policies(where.kind),
                sampling,
                passes,
                choices,
                known,
                batch_invariant,
            )
            outcome = Benchmark(setup, plan, recorder, progress).run(problems)
        weights = [] if outcome.interrupted else [*held.of_races(outcome.races, where)]
        path = str(recorder.path)
    _show(outcome, weights, path, as_json)
    if outcome.interrupted:
        raise typer.Exit(Exit.INTERRUPTED)
    if not outcome.races:
        raise BenchError("nothing was measured: " + "; ".join(outcome.problems))


def _of(prior: Evidence, where: Device) -> Choices:
    """The last choice of every workload and recipe on this device, a cold cache's if there is."""
    lines = [line for line in newest(prior.races) if line.race.device == where]
    lines.sort(key=lambda line: line.race.policy.cache == "cold")
    return {(line.race.workload, line.race.recipe): line.chosen for line in lines}


def _of_table(
    table: Table, where: Device, problems: list[Problem], recipes: tuple[str, ...]
) -> Choices:
    table.require(where)
    choices: dict[tuple[Workload, str], Candidate] = {}
    for work in (problem.gemm for problem in problems):
        for name in recipes:
            try:
                choices[work, name] = table.lookup(work.n, work.k, name).choose(work.m)
            except TableError as error:
                say(f"! {work.label} {name}: {error}; the default stands in for it")
    return choices


def _show(outcome: Outcome, weights: list[Held], path: str, as_json: bool) -> None:
    most = outcome.limits
    if as_json:
        names = (*BANDWIDTHS, *PEAKS)
        print_json({
            "limits": most and {name: getattr(most, name) for name in names},
            "lines": [line for race in pooled(outcome.races) for line in _lines(race, most)],
            "weights": [asdict(weight) for weight in weights],
            "absent": outcome.absent,
            "problems": outcome.problems,
            "interrupted": outcome.interrupted,
            "results": path,
        })  # fmt: skip
        return
    if most is not None:
        stdout.print(present.limits_text(most), highlight=False)
    if outcome.races:
        stdout.print(present.bench_table(pooled(outcome.races), most, stdout.width))
    for weight in weights:
        stdout.print(f"weight {weight.text}", highlight=False, markup=False, soft_wrap=True)
    for name, why in outcome.absent.items():
        stdout.print(f"absent: {name}: {why}", highlight=False, markup=False, soft_wrap=True)
    for problem in outcome.problems:
        stdout.print(f"! {problem}", highlight=False, markup=False, soft_wrap=True)
    stdout.print(f"results: {path}", highlight=False, soft_wrap=True)


def _lines(race: Race, most: Limits | None) -> list[dict[str, Any]]:
    return [
        {
            "workload": race.workload.label, "recipe": race.recipe, "role": entry.role,
            **race.policy.model_dump(), "median_us": entry.measurement.median_ns / 1e3,
            "interval_us": [ns / 1e3 for ns in entry.measurement.interval_ns],
            "gflops": entry.measurement.gflops(race.workload),
            "share_of_limit": entry.share, "bound_by": entry.bound and entry.bound.by,
            "against_bf16": asdict(entry.against_bf16),
            "joules_per_call": entry.measurement.telemetry.joules_per_call,
        }
        for entry in entries(race, most)
    ]  # fmt: skip
