"""`fp4bench tune --target b200 --static`: a ranking for a GPU that need not be here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fp4bench.boards import BOARDS, board
from fp4bench.cli.output import print_json, say, stderr, stdout
from fp4bench.errors import BenchError, Exit, UsageError
from fp4bench.evidence import Recorder
from fp4bench.static import ranker, table
from fp4bench.static.rows import PredictedTime
from fp4kernels.devices import Device, probe_toolchain
from fp4kernels.workloads import GemmWorkload

FOLDER = Path("results") / "static"
MEASURING = ("device", "cache", "launch", "seed")  # options of a tune that measures


def target_device(context: typer.Context, target: str | None, static: bool) -> Device | None:
    """The board to predict for, or None for a tune that measures. UsageError for half of either."""
    if not static:
        if target is not None:
            raise UsageError("--target names a GPU to predict for, so it needs --static")
        if _typed(context, "most"):
            raise UsageError("--most limits what --static compiles, so it needs --static")
        return None
    if target is None:
        raise UsageError(f"--static needs --target, one of {', '.join(BOARDS)}")
    for name in MEASURING:
        if _typed(context, name):
            raise UsageError(
                f"--static predicts and measures nothing, so it takes no --{name}; leave one of both"
            )
    return board(target).device


def _typed(context: typer.Context, name: str) -> bool:
    """Whether the option was given on the command line, not by a file, the environment or default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


class Run:
    """What came out until it ended, in whichever way."""

    def __init__(self, works: int) -> None:
        self.works = works
        self.done = 0
        self.rows: list[PredictedTime] = []
        self.failures: list[str] = []
        self.interrupted = False


def predict(request: ranker.Request, budget: float, out: Path, as_json: bool) -> None:
    """Compile within `budget` seconds, record and print the ranking. Ctrl-C keeps what was done."""
    if request.toolchain.triton is None:
        raise UsageError("compiling needs Triton, which is not installed; pip install triton")
    deadline = time.monotonic() + budget
    works = ranker.plan(request)
    run = Run(len(works))
    with Recorder(out / FOLDER / request.name) as recorder:
        try:
            _compile(request, works, run, recorder, deadline)
        except KeyboardInterrupt:
            run.interrupted = True
        path = str(recorder.path)
    _show(request, run, path, as_json)
    if run.interrupted:
        raise typer.Exit(Exit.INTERRUPTED)
    if not run.rows:
        why = run.failures or ["the budget was too short; give more with --budget"]
        raise BenchError(f"nothing was predicted: {why[0]}")


def _compile(
    request: ranker.Request,
    works: list[ranker.Work],
    run: Run,
    recorder: Recorder,
    deadline: float,
) -> None:
    bar = Progress(
        TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn(),
        console=stderr, transient=True, disable=not stderr.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(f"compiling for {request.board.name}", total=run.works)
        for found in ranker.rank(request, works):
            run.done += 1
            if isinstance(found, str):
                run.failures.append(found)
            else:
                for row in found:
                    recorder.append(row)
                run.rows += found
            bar.update(task, advance=1)
            if time.monotonic() > deadline:
                return


def _show(request: ranker.Request, run: Run, path: str, as_json: bool) -> None:
    groups = ranker.ranked(run.rows)
    if as_json:
        print_json({
            "prediction": True,
            "board": request.name,
            "rankings": [[_values(row) for row in group] for group in groups],
            "kernels": run.works,
            "compiled": run.done,
            "failures": run.failures,
            "interrupted": run.interrupted,
            "results": path if run.rows else None,
        })  # fmt: skip
    else:
        for one in table.tables(groups):
            stdout.print(one)
            stdout.print()
        if run.rows:
            stdout.print(table.LEGEND, highlight=False)
            stdout.print(f"results: {path}", highlight=False, soft_wrap=True)
    if run.failures:
        say(f"{len(run.failures)} of {run.done} kernels are left out: {run.failures[0]}")
    if run.done < run.works:
        say(f"{run.done} of {run.works} kernels were compiled; give more time with --budget")


def _values(row: PredictedTime) -> dict[str, Any]:
    return {**row.model_dump(mode="json"), "share_of_limit": row.share_of_limit}


def request_of(
    target: str, workloads: Sequence[GemmWorkload], recipes: tuple[str, ...], effort: str, most: int
) -> ranker.Request:
    """What `target` names, with the compilers of this machine."""
    name, toolchain = target.lower().replace(" ", "-"), probe_toolchain("cuda")
    return ranker.Request(
        name, board(target), tuple(workloads), recipes, effort, toolchain, most
    )  # fmt: skip
