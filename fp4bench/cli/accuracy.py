"""`fp4bench accuracy`: what formats cost, on synthetic data, a model's weights and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fp4bench import evidence
from fp4bench.accuracy import activations, sources, study, table
from fp4bench.accuracy.choices import OUTLIERS, Choices, outliers_named
from fp4bench.accuracy.sources import ACTIVATIONS, DISTRIBUTIONS, WEIGHTS, Size, Source
from fp4bench.cli.options import JsonOption, OutOption, ShapeOption, surroundings
from fp4bench.cli.output import print_json, say, stderr, stdout
from fp4bench.cli.problems import ModelOption
from fp4bench.errors import Exit, UsageError
from fp4bench.progress import StudyProgress
from fp4bench.trials import FormatAccuracy
from fp4bench.workloads import from_shapes
from fp4kernels.formats import FORMATS, BlockFormat, format_named, named
from fp4kernels.recipes import Recipe, Rounding, ScaleRule, Transform, default_rule, rules_for
from fp4kernels.recipes import recipe as recipe_named

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

ALL = "all"
QUICK_DATA = ("gaussian", "outliers")
FOLDER = Path("results") / "accuracy"

FormatOption = Annotated[
    list[str] | None,
    typer.Option(help="a name, or composed such as int3-fp32-1x64; default: all named"),
]
RuleOption = Annotated[
    list[str] | None, typer.Option(help="scale rule; all for those that fit; default: the format's")
]
RoundingOption = Annotated[list[str] | None, typer.Option(help="or all; default: nearest-even")]
TransformOption = Annotated[list[str] | None, typer.Option(help="or all; default: none")]
OutliersOption = Annotated[
    list[str] | None, typer.Option(help="none, clamp-Q, occ-Q or all; default: none")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(help="a distribution, or weights or activations of --model; default: all"),
]


def accuracy(
    format: FormatOption = None,
    rule: RuleOption = None,
    rounding: RoundingOption = None,
    transform: TransformOption = None,
    outliers: OutliersOption = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="of tune, instead of --format and the rest")
    ] = None,
    data: DataOption = None,
    shape: ShapeOption = None,
    model: ModelOption = None,
    text: Annotated[
        Path | None, typer.Option(help="what the model reads; default: sentences brought along")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="less data, in seconds")] = False,
    out: OutOption = Path(),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what formats cost: the cross product of formats, rules, roundings, transforms, outliers.

    With --shape on the operands that `tune` measures; with --model on its weights, and with --text
    or --data activations on its activations. Errors do not depend on the device; the CPU is used.
    """
    crossed = (format, rule, rounding, transform, outliers)
    if recipe is not None and any(crossed):
        raise UsageError("give --recipe, or --format and what is crossed with it")
    recipes = [recipe_named(name) for name in recipe] if recipe else _cross(*crossed)
    size = sources.QUICK if quick else sources.FULL
    where, toolchain = surroundings("cpu")
    chosen = _sources(data, shape, model, text, size, seed)
    total = len(chosen) * len(recipes)
    say(f"{len(recipes)} recipes on {len(chosen)} tensors")
    with evidence.Recorder(out / FOLDER) as recorder, StudyProgress(stderr, total) as progress:
        outcome = study.run(
            chosen, recipes, study.Setting(where, toolchain, seed), recorder, progress
        )
        path = str(recorder.path)
    if not outcome.rows and not outcome.interrupted:
        raise UsageError(outcome.left_out[0])
    _show(outcome, path, as_json)
    if outcome.interrupted:
        raise typer.Exit(Exit.INTERRUPTED)


def _cross(
    formats: list[str] | None,
    rules: list[str] | None,
    roundings: list[str] | None,
    transforms: list[str] | None,
    outliers: list[str] | None,
) -> list[Recipe]:
    chosen = _named("rule", rules, _by_value(ScaleRule), ()) if rules != [ALL] else ()

    def rules_of(fmt: BlockFormat) -> Sequence[ScaleRule]:
        return chosen or (rules_for(fmt) if rules else (default_rule(fmt),))

    treatments = OUTLIERS if outliers == [ALL] else map(outliers_named, outliers or ["none"])
    choices = Choices(
        _formats(formats),
        rules_of,
        _named("rounding", roundings, _by_value(Rounding), (Rounding.NEAREST_EVEN,)),
        _named("transform", transforms, _by_value(Transform), (Transform.NONE,)),
        tuple(dict.fromkeys(treatments)),
    )
    recipes, reasons = choices.recipes()
    _say_left_out(reasons)
    return recipes


def _formats(names: list[str] | None) -> list[BlockFormat]:
    if not names or names == [ALL]:
        return list(FORMATS.values())
    return list(dict.fromkeys(map(format_named, names)))


def _sources(
    names: list[str] | None,
    shapes: list[str] | None,
    model: Path | None,
    text: Path | None,
    size: Size,
    seed: int,
) -> list[Source]:
    if shapes is not None:
        if names or model or text:
            raise UsageError(
                "--shape has operands of its own; leave out --data, --model and --text"
            )
        return [sources.of_problem(problem, seed) for problem in from_shapes(shapes)]
    if model is None and text is not None:
        raise UsageError("--text is what a model reads; name its folder with --model")
    default = [WEIGHTS, *([ACTIVATIONS] if text else [])] if model else list(DISTRIBUTIONS)
    if size is sources.QUICK and not model:
        default = list(QUICK_DATA)
    known = (*DISTRIBUTIONS, *((WEIGHTS, ACTIVATIONS) if model or names != [ALL] else ()))
    found: list[Source] = []
    for kind in _named("data", names, {name: name for name in known}, default):
        if kind in DISTRIBUTIONS:
            found.append(sources.synthetic(kind, size, seed))
        elif model is None:
            raise UsageError(f"--data {kind} needs a Hugging Face folder; name it with --model")
        elif kind == WEIGHTS:
            found += sources.weights_of(model, size, seed)
        else:
            found += activations.activations_of(model, text or activations.SENTENCES, size)
    return found


def _by_value(kind: type[E]) -> dict[str, E]:
    return {str(member): member for member in kind}


def _named(
    kind: str, names: list[str] | None, known: Mapping[str, T], default: Sequence[T]
) -> Sequence[T]:
    """What the names stand for, once each; `all` is all there is."""
    if not names:
        return default
    if names == [ALL]:
        return list(known.values())
    return list(dict.fromkeys(named(kind, name, known) for name in names))


def _show(outcome: study.Outcome, path: str, as_json: bool) -> None:
    if as_json:
        print_json({
            "rows": [_values(row) for row in outcome.rows],
            "left_out": outcome.left_out,
            "interrupted": outcome.interrupted,
            "results": path if outcome.rows else None,
        })  # fmt: skip
        return
    _say_left_out(outcome.left_out)
    for one in table.tables(outcome.rows, stdout.width):
        stdout.print(one)
    if outcome.rows:
        stdout.print(table.LEGEND, highlight=False)
        stdout.print(f"results: {path}", highlight=False, soft_wrap=True)
    if outcome.interrupted:
        say("interrupted: what was computed is kept")


def _values(row: FormatAccuracy) -> dict[str, Any]:
    derived = {name: getattr(row, name) for name in ("recipe", "effective_bits", "sqnr_db")}
    return {**row.model_dump(mode="json", exclude={"device", "toolchain"}), **derived}


def _say_left_out(reasons: Sequence[str]) -> None:
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        say(f"left out: {reasons[0]}{more}")
