"""`fp4bench tune`: the search, its files and its table."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from fp4bench import doctor, evidence, export, locks, present
from fp4bench.cli import attention
from fp4bench.cli import static as static_tune
from fp4bench.cli.options import (
    TRAINING_TOKENS,
    DeviceOption,
    JsonOption,
    OutOption,
    RecipeOption,
    ShapeOption,
    one_of,
    seconds,
    surroundings,
)
from fp4bench.cli.output import print_json, save, stderr, stdout, warn_of
from fp4bench.cli.problems import (
    ModelOption,
    MOption,
    PresetOption,
    problems_of,
    recipes_of,
    runnable,
)  # fmt: skip
from fp4bench.errors import BenchError, Exit, UsageError
from fp4bench.evidence import Evidence
from fp4bench.ledger import Outcome
from fp4bench.progress import TuneProgress
from fp4bench.spaces import EFFORTS
from fp4bench.summary import Line, frame, summarize
from fp4bench.timing import default_policy
from fp4bench.trials import Policy
from fp4bench.tuner import Options, Tuner
from fp4bench.worker import Setup
from fp4kernels.devices import Device

TargetOption = Annotated[
    str | None, typer.Option(help=f"with --static: {', '.join(static_tune.BOARDS)}")
]


def tune(
    invocation: typer.Context,
    op: attention.OpArgument = attention.OPS[0],
    shape: ShapeOption = None,
    preset: PresetOption = None,
    model: ModelOption = None,
    m: MOption = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="forward, dgrad and wgrad of a model's or preset's layers"),
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(min=1, help=f"of a --train step; default: {TRAINING_TOKENS}")
    ] = None,
    context: attention.ContextOption = None,
    batch: attention.BatchOption = None,
    phase: attention.PhaseOption = None,
    page_size: attention.PageSizeOption = None,
    recipe: RecipeOption = None,
    device: DeviceOption = None,
    budget: Annotated[str, typer.Option(help="wall time in all: 90s, 10m")] = "90s",
    effort: Annotated[str, typer.Option(help="which values to search: quick or full")] = "quick",
    cache: Annotated[str, typer.Option(help="cold: weights come from memory; or warm")] = "cold",
    launch: Annotated[str, typer.Option(help="auto, graph (GPU only) or eager")] = "auto",
    out: OutOption = Path(),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    target: TargetOption = None,
    static: Annotated[
        bool, typer.Option("--static", help="predict for --target; nothing runs or is measured")
    ] = False,
    most: Annotated[
        int, typer.Option(min=1, help="--static: kernels to compile a workload and recipe, at most")
    ] = 24,
    as_json: JsonOption = False,
) -> None:
    """Search, prove and race kernels; write results, table and report.

    `tune attention` does so for the attention of a model, at every --context and --batch.
    With --static a ranking for a GPU that need not be here: compiled and predicted, not measured.
    """
    one_of("effort", effort, EFFORTS)
    if tokens is not None and not train:
        raise UsageError("--tokens goes with --train; for a forward pass give its sizes as --m")
    step = (tokens or TRAINING_TOKENS) if train else None
    asked = attention.Asked(context, batch, phase, page_size)
    if attention.operation(op) == "attention":
        attention.only_products({"--shape": shape, "--m": m, "--train": train, "--static": static})
    else:
        asked.refuse()
    board = static_tune.target_device(invocation, target, static)
    if board is not None:
        recipes = recipes_of(recipe, board)
        problems = runnable(problems_of(shape, preset, model, m, board, step), recipes)
        works = [problem.gemm for problem in problems]
        request = static_tune.request_of(target or "", works, recipes, effort, most)
        static_tune.predict(request, seconds(budget), out, as_json)
        return
    where, toolchain = surroundings(device)
    if op == "attention":
        recipes = attention.recipes_of(recipe)
        problems = attention.problems_of(asked, preset, model, where)
        problems = attention.runnable(problems, recipes, (where, toolchain))
    else:
        recipes = recipes_of(recipe, where)
        problems = runnable(problems_of(shape, preset, model, m, where, step), recipes)
    if op == "attention" and launch == "auto":
        launch = "eager"  # prefill makes tables on the host, which no graph takes
    setup = Setup(where, toolchain, _policy(where, cache, launch), seed)
    options = Options(recipes, setup, effort, seconds(budget))
    folder = out / "results" / where.slug
    prior = evidence.read(folder) if folder.is_dir() else Evidence((), ())
    warn_of(prior)
    stderr.print(f"tuning {len(problems)} workloads × {len(recipes)} recipes on {where.name} "
                 f"({where.arch}, {where.cores} cores), budget {options.budget:.0f} s", highlight=False)  # fmt: skip
    for finding in doctor.findings(where, toolchain):
        stderr.print(f"! {finding.problem}; fix: {finding.fix}", highlight=False)
    with locks.exclusive(where), evidence.Recorder(folder) as recorder:
        with TuneProgress(stderr, options.budget) as progress:
            outcome = Tuner(options, recorder, prior, progress).run(problems)
        lines = summarize(outcome.races.values())
        files = {"results": str(recorder.path)} if outcome.tried or outcome.races else {}
        if lines:
            files |= _write_outputs(out, folder, where)
    _show(lines, outcome, files, as_json)
    if outcome.interrupted:
        raise typer.Exit(Exit.INTERRUPTED)
    if not lines:
        why = outcome.problems or ["the budget was too short; give more with --budget"]
        raise BenchError(f"nothing was raced: {why[0]}")


def _policy(where: Device, cache: str, launch: str) -> Policy:
    policy = default_policy(where.kind, one_of("cache", cache, ("cold", "warm")))
    if one_of("launch", launch, ("auto", "graph", "eager")) == "auto":
        return policy
    if launch == "graph" and where.kind == "cpu":
        raise UsageError("--launch graph needs a GPU, but the device is a CPU")
    return Policy.model_validate({**policy.model_dump(), "launch": launch})


def _write_outputs(out: Path, folder: Path, where: Device) -> dict[str, str]:
    """Table and report over all results of the device, this run's and earlier ones."""
    from fp4bench import report  # its libraries take half a second to import

    found = evidence.read(folder)
    table, page = folder / "table.json", out / "reports" / f"{where.slug}.html"
    written: dict[str, str] = {}
    save(export.make_table(found, [folder.name]), table)
    written["table"] = str(table)
    report.write(page, found, str(folder))
    return {**written, "report": str(page)}


def _by_op(lines: list[Line]) -> list[list[Line]]:
    """Lines of one operation beside each other; they are sorted so."""
    return [[*own] for _, own in groupby(lines, lambda line: type(line.race.workload))]


def _show(lines: list[Line], outcome: Outcome, files: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json({
            "lines": json.loads(frame(lines, outcome.limits).to_json(orient="records")),
            "tried": outcome.tried,
            "reused": outcome.reused,
            "failures": {status.value: count for status, count in outcome.failures.items()},
            "unreached": [problem.workload.key for problem in outcome.unreached],
            "interrupted": outcome.interrupted,
            "seconds": {
                "wall": outcome.wall, "compiling": outcome.compiling, "measuring": outcome.measuring,
            },
            "files": files,
        })  # fmt: skip
        return
    for of_op in _by_op(lines):
        stdout.print(present.results_table(of_op, stdout.width, outcome.limits))
    stdout.print(present.outcome_text(outcome), highlight=False, markup=False)
    for name, path in files.items():
        stdout.print(f"{name + ':':9}{path}", highlight=False, soft_wrap=True)
