"""From a command's options to the workloads it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fp4bench.cli.options import DEFAULT_PRESET, DEFAULT_RECIPES, MODEL_MS, sizes
from fp4bench.cli.output import stderr
from fp4bench.errors import UsageError
from fp4bench.workloads import Problem, fitting, from_model, from_preset, from_shapes, training
from fp4kernels.devices import Device
from fp4kernels.recipes import recipe as recipe_named

PresetOption = Annotated[str | None, typer.Option(help="a model of search_spaces/models")]
ModelOption = Annotated[Path | None, typer.Option(help="a Hugging Face folder")]
MOption = Annotated[str | None, typer.Option(help="M values of a model or preset: 1,8,512")]


def recipes_of(named: list[str] | None, where: Device) -> tuple[str, ...]:
    return tuple(recipe_named(name).name for name in named or DEFAULT_RECIPES[where.kind])


def problems_of(
    shape: list[str] | None,
    preset: str | None,
    model: Path | None,
    m: str | None,
    where: Device,
    tokens: int | None = None,
) -> list[Problem]:
    """The forward GEMMs; with `tokens`, all three of a training step of so many."""
    if tokens is not None:
        if shape is not None or m is not None:
            raise UsageError("--tokens is the M of --model or --preset; leave --shape and --m out")
        return training(problems_of(None, preset, model, str(tokens), where))
    if sum(source is not None for source in (shape, preset, model)) > 1:
        raise UsageError("give one of --shape, --preset and --model")
    if shape is not None:
        if m is not None:
            raise UsageError("--m goes with --model or --preset; a --shape names its own M")
        return from_shapes(shape)
    if model is not None:
        return from_model(model, sizes(m or MODEL_MS))
    return from_preset(preset or DEFAULT_PRESET[where.kind], sizes(m) if m else None)


def runnable(problems: list[Problem], recipes: tuple[str, ...]) -> list[Problem]:
    """Those whose K suits every recipe. UsageError if there is none, else a line for each other."""
    reasons = {problem: fitting(problem, recipes) for problem in problems}
    left_out = [f"{p.workload.label}: {why[0]}" for p, why in reasons.items() if why]
    kept = [problem for problem, why in reasons.items() if not why]
    if not kept:
        raise UsageError(left_out[0])
    for line in left_out:
        stderr.print(f"left out {line}", highlight=False)
    return kept
