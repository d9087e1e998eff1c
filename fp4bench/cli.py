"""The command line: data on stdout, progress on stderr, one line for an error."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import fp4bench
from fp4bench import doctor as doctor_module
from fp4bench import evidence, export, present, report
from fp4bench.errors import BenchError, Exit, UsageError
from fp4bench.evidence import Evidence
from fp4bench.progress import TuneProgress
from fp4bench.spaces import EFFORTS
from fp4bench.summary import Line, frame, summarize
from fp4bench.timing import default_policy
from fp4bench.tuner import Options, Outcome, Tuner
from fp4bench.validation import from_results, from_table, validate_all
from fp4bench.worker import Setup
from fp4bench.workloads import Problem, fitting, from_model, from_preset, from_shapes
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain
from fp4kernels.errors import DeviceError, FormatError, Fp4Error, WorkloadError
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.tables import Table

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Tune FP4 kernels on this device, prove them against FP32, and export the winners.",
)  # fmt: skip
stderr = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
stdout = Console(width=None if sys.stdout.isatty() else 120)

DEFAULT_PRESET = {"cpu": "smollm2-135m", "cuda": "llama-3.1-8b"}
DEFAULT_RECIPES = {"cpu": ["mxfp4", "nvfp4"],
                   "cuda": ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]}  # fmt: skip
MODEL_MS = "1,8,512"
LEAST_BUDGET = 5.0  # starting the measuring process takes about this long

DeviceOption = Annotated[
    str | None, typer.Option(help="cpu or cuda; default: a GPU if there is one")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
OutOption = Annotated[Path, typer.Option(help="folder that gets results/ and reports/")]


def main() -> None:
    """Entry point: turns what is raised on purpose into one line and an exit code."""
    try:
        app(standalone_mode=True, auto_envvar_prefix="FP4BENCH")
    except (BenchError, Fp4Error) as error:
        stderr.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(_exit_code(error))
    except KeyboardInterrupt:
        stderr.print("interrupted")
        sys.exit(Exit.INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fp4bench {fp4bench.__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="TOML with a table of options per command")] = Path(
        "fp4bench.toml"
    ),
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options come from flags, then FP4BENCH_<COMMAND>_<OPTION>, then the TOML, then defaults."""
    if config.is_file():
        try:
            context.default_map = tomllib.loads(config.read_text())
        except (tomllib.TOMLDecodeError, OSError) as error:
            raise UsageError(f"cannot read {config}: {error}") from error


@app.command()
def doctor(device: DeviceOption = None, as_json: JsonOption = False) -> None:
    """Say what this machine can run, native or emulated, and how to mend what it cannot."""
    where, toolchain = _surroundings(device)
    if as_json:
        print(json.dumps(doctor_module.to_json(where, toolchain), indent=1))
        return
    stdout.print(f"{where.name} ({where.arch}), {where.cores} cores, "
                 f"{where.cache_bytes >> 20} MiB last-level cache", highlight=False)  # fmt: skip
    for name, version in asdict(toolchain).items():
        if version is not None:
            stdout.print(f"{name.replace('_', ' ')}: {version}", highlight=False)
    stdout.print(present.abilities_table(doctor_module.abilities(where, toolchain)))
    for finding in doctor_module.findings(where, toolchain):
        stdout.print(f"! {finding.problem}\n  fix: {finding.fix}", highlight=False)


@app.command()
def tune(
    shape: Annotated[list[str] | None, typer.Option(help="MxNxK; may be repeated")] = None,
    preset: Annotated[str | None, typer.Option(help="a model of search_spaces/models")] = None,
    model: Annotated[Path | None, typer.Option(help="a Hugging Face folder")] = None,
    m: Annotated[str | None, typer.Option(help="M values of a model or preset: 1,8,512")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="may be repeated")] = None,
    device: DeviceOption = None,
    budget: Annotated[str, typer.Option(help="wall time in all: 90s, 10m")] = "90s",
    effort: Annotated[str, typer.Option(help="which values to search: quick or full")] = "quick",
    cache: Annotated[str, typer.Option(help="cold: weights come from memory; or warm")] = "cold",
    out: OutOption = Path(),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Search, prove and race kernels; write results, table and report."""
    where, toolchain = _surroundings(device)
    recipes = tuple(recipe_named(name).name for name in recipe or DEFAULT_RECIPES[where.kind])
    problems = _runnable(_problems(shape, preset, model, m, where), recipes)
    setup = Setup(
        where,
        toolchain,
        default_policy(where.kind, _one_of("cache", cache, ("cold", "warm"))),
        seed,
    )
    options = Options(recipes, setup, _one_of("effort", effort, EFFORTS), _seconds(budget))
    folder = out / "results" / where.slug
    prior = evidence.read(folder) if folder.is_dir() else Evidence((), ())
    _warn_of(prior)
    stderr.print(f"tuning {len(problems)} workloads × {len(recipes)} recipes on {where.name} "
                 f"({where.arch}, {where.cores} cores), budget {options.budget:.0f} s", highlight=False)  # fmt: skip
    for finding in doctor_module.findings(where, toolchain):
        stderr.print(f"! {finding.problem}; fix: {finding.fix}", highlight=False)
    with evidence.Recorder(folder) as recorder:
        with TuneProgress(stderr, options.budget) as progress:
            outcome = Tuner(options, recorder, prior, progress).run(problems)
        lines = summarize(outcome.races)
        files = {"results": str(recorder.path)} if outcome.tried or outcome.races else {}
        if lines:
            files |= _write_outputs(out, folder, where)
    _show(lines, outcome, files, as_json)
    if outcome.interrupted:
        raise typer.Exit(Exit.INTERRUPTED)
    if not lines:
        raise BenchError("nothing was measured within the budget; give more with --budget")


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="a table.json, or a results file or folder")],
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put every chosen kernel through the gate again, on fresh inputs. Exit 4 if one fails."""
    where, toolchain = _surroundings(device)
    if path.suffix == ".json":
        table = Table.read(path)
        table.require(where)
        pairs = from_table(table)
    else:
        pairs = from_results(evidence.read(path))
    setup = Setup(where, toolchain, default_policy(where.kind, "warm"), seed=0)
    checks = validate_all(pairs, setup, stderr)
    failed = [check for check in checks if check.reason is not None]
    if as_json:
        print(json.dumps({"schema": 1, "checks": [check.to_json() for check in checks]}, indent=1))
    else:
        for check in failed:
            stdout.print(f"FAILED {check.label}: {check.reason}", markup=False, highlight=False)
        stdout.print(f"{len(checks) - len(failed)} of {len(checks)} kernels passed the gate")
    if failed:
        raise typer.Exit(Exit.GATE_FAILED)


@app.command("report")
def report_command(
    path: Annotated[Path, typer.Argument(help="a results file or folder")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the HTML file")] = Path(
        "reports/report.html"
    ),
) -> None:
    """Render results as one HTML file that needs no network."""
    found = evidence.read(path)
    _warn_of(found)
    report.write(output, found, str(path))
    print(output)


@app.command("export")
def export_command(
    path: Annotated[Path, typer.Argument(help="a results file or folder")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the table")] = Path("table.json"),
) -> None:
    """Write the table that training code loads."""
    found = evidence.read(path)
    _warn_of(found)
    _save(export.make_table(found, [path.name]), output)
    print(output)


def _surroundings(device: str | None) -> tuple[Device, Toolchain]:
    where = probe_device(device)
    return where, probe_toolchain(where.kind)


def _problems(
    shape: list[str] | None, preset: str | None, model: Path | None, m: str | None, where: Device
) -> list[Problem]:
    if sum(source is not None for source in (shape, preset, model)) > 1:
        raise UsageError("give one of --shape, --preset and --model")
    if shape is not None:
        if m is not None:
            raise UsageError("--m goes with --model or --preset; a --shape names its own M")
        return from_shapes(shape)
    if model is not None:
        return from_model(model, _sizes(m or MODEL_MS))
    return from_preset(preset or DEFAULT_PRESET[where.kind], _sizes(m) if m else None)


def _runnable(problems: list[Problem], recipes: tuple[str, ...]) -> list[Problem]:
    """Those whose K suits every recipe. UsageError if there is none, else a line for each other."""
    reasons = {problem: fitting(problem, recipes) for problem in problems}
    left_out = [f"{p.workload.label}: {why[0]}" for p, why in reasons.items() if why]
    runnable = [problem for problem, why in reasons.items() if not why]
    if not runnable:
        raise UsageError(left_out[0])
    for line in left_out:
        stderr.print(f"left out {line}", highlight=False)
    return runnable


def _write_outputs(out: Path, folder: Path, where: Device) -> dict[str, str]:
    """Table and report over all results of the device, this run's and earlier ones."""
    found = evidence.read(folder)
    table, page = folder / "table.json", out / "reports" / f"{where.slug}.html"
    written: dict[str, str] = {}
    _save(export.make_table(found, [folder.name]), table)
    written["table"] = str(table)
    report.write(page, found, str(folder))
    return {**written, "report": str(page)}


def _save(table: Table, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error


def _show(lines: list[Line], outcome: Outcome, files: dict[str, str], as_json: bool) -> None:
    if as_json:
        values: dict[str, Any] = {
            "schema": 1,
            "lines": json.loads(frame(lines).to_json(orient="records")),
            "tried": outcome.tried,
            "reused": outcome.reused,
            "failures": {status.value: count for status, count in outcome.failures.items()},
            "unreached": [problem.workload.key for problem in outcome.unreached],
            "interrupted": outcome.interrupted,
            "files": files,
        }
        print(json.dumps(values, indent=1))
        return
    if lines:
        stdout.print(present.results_table(lines))
    stdout.print(present.outcome_text(outcome), highlight=False, markup=False)
    for name, path in files.items():
        stdout.print(f"{name + ':':9}{path}", highlight=False, soft_wrap=True)


def _warn_of(found: Evidence) -> None:
    for damage in found.damage:
        stderr.print(str(damage), markup=False, highlight=False, soft_wrap=True)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UsageError(f"--{name} must be one of {', '.join(choices)}, but got {value!r}")
    return value


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*\d+\s*", part) for part in parts):
        raise UsageError(f"--m reads as numbers with commas, such as 1,8,512, but got {text!r}")
    return [int(part) for part in parts]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if match is None:
        raise UsageError(f"--budget reads as 90s, 10m or 1h, but got {text!r}")
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]
    if seconds < LEAST_BUDGET:
        raise UsageError(
            f"--budget must be at least {LEAST_BUDGET:.0f}s, about what starting the measuring "
            f"process and one trial take, but got {text}"
        )
    return seconds


def _exit_code(error: BenchError | Fp4Error) -> Exit:
    if isinstance(error, BenchError):
        return error.exit_code
    if isinstance(error, DeviceError):
        return Exit.NO_DEVICE
    return Exit.USAGE if isinstance(error, FormatError | WorkloadError) else Exit.ERROR


if __name__ == "__main__":
    main()
