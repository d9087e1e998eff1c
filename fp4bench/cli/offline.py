"""`fp4bench compile`: what becomes of the Triton kernels on GPUs that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fp4bench.cli import attention
from fp4bench.cli.options import JsonOption, OutOption, RecipeOption, one_of
from fp4bench.cli.output import print_json, say, stderr, stdout
from fp4bench.errors import Exit, UsageError
from fp4bench.evidence import Recorder
from fp4bench.proof import prover, table
from fp4bench.proof.rows import Proof
from fp4bench.proof.targets import ARCHES, target
from fp4bench.spaces import EFFORTS
from fp4kernels.devices import probe_toolchain

FOLDER = Path("results") / "offline"

ArchOption = Annotated[
    list[str] | None, typer.Option(help=f"{', '.join(ARCHES)}; may be repeated; default: all")
]
EffortOption = Annotated[
    str, typer.Option(help="default (untuned choices), quick or full (that search space)")
]


def compile(
    op: attention.OpArgument = attention.OPS[0],
    arch: ArchOption = None,
    recipe: RecipeOption = None,
    effort: EffortOption = prover.DEFAULT,
    out: OutOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Compile the Triton kernels for GPUs that are not here: registers, spills, matrix instructions.

    Exit code 1 where a legal configuration does not compile or needs more shared memory than it
    should, or a default spills. Nothing is run, and no time is measured.
    """
    one_of("effort", effort, (prover.DEFAULT, *EFFORTS))
    arches = [target(name).arch for name in dict.fromkeys(arch or ARCHES)]
    toolchain = probe_toolchain("cuda")
    if attention.operation(op) == "attention":
        if effort != prover.DEFAULT:
            raise UsageError(f"attention is compiled in its untuned choices, but got {effort}")
        jobs = prover.attention_jobs(arches, recipe, toolchain)
    else:
        jobs = prover.jobs_of(arches, prover.recipes_of(recipe, toolchain), effort, toolchain)
    rows: list[Proof] = []
    bar = Progress(
        TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn(),
        console=stderr, transient=True, disable=not stderr.is_terminal,
    )  # fmt: skip
    with Recorder(out / FOLDER) as recorder, bar:
        task = bar.add_task("compiling", total=len(jobs))
        for row in prover.prove(jobs, toolchain):
            recorder.append(row)
            rows.append(row)
            bar.update(task, advance=1, description=row.arch)
        path = str(recorder.path)
    _show(rows, path, as_json)
    if any(row.problem for row in rows):
        raise typer.Exit(Exit.ERROR)


def _show(rows: list[Proof], path: str, as_json: bool) -> None:
    if as_json:
        problems = [f"{row.label}: {row.problem}" for row in rows if row.problem]
        print_json({
            "rows": [row.model_dump(mode="json") for row in rows],
            "problems": problems,
            "results": path,
        })  # fmt: skip
    else:
        for one in table.tables(rows, stdout.width):
            stdout.print(one)
            stdout.print()
        stdout.print(table.LEGEND, highlight=False)
        stdout.print(f"results: {path}", highlight=False, soft_wrap=True)
    for row in rows:
        if why := row.problem or getattr(row, "reason", None):
            say(f"{'failed, but not for use' if row.refused else 'error'}: {row.label}: {why}")
