"""From a command's options to the attention that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fp4bench.attention.baselines import ATTENTION_BASELINES
from fp4bench.attention.problems import PAGE_SIZE, attention_problems
from fp4bench.cli.options import DEFAULT_PRESET, sizes
from fp4bench.cli.output import stderr
from fp4bench.errors import UsageError
from fp4bench.trials import SDPA
from fp4bench.workloads import Problem, model_of, preset_model
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.formats import named

OPS = ("gemm", "attention")
RECIPES = ("nvfp4", "mxfp4")
CONTEXTS, BATCHES = "4096,32768", "1,8,64"
# a CPU takes minutes for prefill of the longer contexts
PHASES = {"cpu": (Phase.DECODE,), "cuda": (Phase.DECODE, Phase.PREFILL)}

OpArgument = Annotated[str, typer.Argument(help=" or ".join(OPS), show_default=True)]
ContextOption = Annotated[
    str | None, typer.Option(help=f"attention: keys of a sequence; default: {CONTEXTS}")
]
BatchOption = Annotated[str | None, typer.Option(help=f"attention: sequences; default: {BATCHES}")]
PhaseOption = Annotated[
    str | None,
    typer.Option(help="attention: decode,prefill; default: both, on a CPU decode"),
]
PageSizeOption = Annotated[
    int | None, typer.Option(help=f"attention: tokens of a cache's page; default: {PAGE_SIZE}")
]


@dataclass(frozen=True)
class Asked:
    """Options that attention alone has; None is the default."""

    context: str | None = None
    batch: str | None = None
    phase: str | None = None
    page_size: int | None = None

    def refuse(self) -> None:
        """UsageError where one is given, for a product."""
        for name, value in vars(self).items():
            if value is not None:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} goes with attention, as in `fp4bench tune attention`")


def operation(text: str) -> str:
    """UsageError where it is none that is tuned."""
    if text not in OPS:
        raise UsageError(f"an operation is {' or '.join(OPS)}, but got {text!r}")
    return text


def only_products(given: Mapping[str, object]) -> None:
    """UsageError where an option is given that attention does not have."""
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} goes with products; attention takes --context and --batch")


def recipes_of(names: list[str] | None) -> tuple[str, ...]:
    """Attention recipes as their texts. FormatError for what is none."""
    return tuple(dict.fromkeys(attention_recipe(name).text for name in names or RECIPES))


def problems_of(
    asked: Asked, preset: str | None, model: Path | None, where: Device
) -> list[Problem]:
    """Of the model in a folder or a preset."""
    if preset is not None and model is not None:
        raise UsageError("give one of --preset and --model")
    shape = model_of(model) if model else preset_model(preset or DEFAULT_PRESET[where.kind])
    known = {phase.value: phase for phase in Phase}
    phases = PHASES[where.kind]
    if asked.phase is not None:
        phases = tuple(named("phase", name.strip(), known) for name in asked.phase.split(","))
    return attention_problems(
        shape,
        sizes(asked.context or CONTEXTS, "context"),
        sizes(asked.batch or BATCHES, "batch"),
        phases,
        PAGE_SIZE if asked.page_size is None else asked.page_size,
    )


def runnable(
    problems: list[Problem], recipes: tuple[str, ...], here: tuple[Device, Toolchain]
) -> list[Problem]:
    """Those that every recipe is defined for, and whose reference fits the memory. UsageError if
    there is none, else a line for each other."""
    reasons = {problem: _unfit(problem, recipes, here) for problem in problems}
    left_out = [f"{p.workload.label}: {why}" for p, why in reasons.items() if why is not None]
    kept = [problem for problem, why in reasons.items() if why is None]
    if not kept:
        raise UsageError(left_out[0])
    for line in left_out:
        stderr.print(f"left out {line}", highlight=False)
    return kept


def _unfit(
    problem: Problem, recipes: tuple[str, ...], here: tuple[Device, Toolchain]
) -> str | None:
    work = problem.workload
    assert isinstance(work, AttentionWorkload)
    try:
        for name in recipes:
            work.check(attention_recipe(name))
    except FormatError as error:
        return str(error)
    return ATTENTION_BASELINES[SDPA].absent(work, *here)
