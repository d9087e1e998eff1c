"""The command line: data on stdout, progress on stderr, one line for an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

import fp4bench
from fp4bench.cli import accuracy, bench, compare, configuration, device, evidence, offline, tune
from fp4bench.cli.interrupts import Interrupts
from fp4bench.cli.options import DEFAULT_PRESET, DEFAULT_RECIPES
from fp4bench.cli.output import say
from fp4bench.errors import BenchError, Exit
from fp4kernels.errors import DeviceError, FormatError, Fp4Error, WorkloadError

__all__ = ["DEFAULT_PRESET", "DEFAULT_RECIPES", "app", "main"]

CONFIGURATION = Path("fp4bench.toml")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Tune FP4 kernels on this device, prove them against FP32, and export the winners.",
)  # fmt: skip
app.command()(device.doctor)
app.command()(tune.tune)
app.command()(bench.bench)
app.command()(accuracy.accuracy)
app.command()(offline.compile)
app.command()(device.validate)
app.command()(evidence.report)
app.command()(evidence.export)
app.command()(evidence.merge)
app.command()(evidence.show)
app.command()(compare.compare)


def main() -> None:
    """Entry point: turns what is raised on purpose into one line and an exit code."""
    with Interrupts() as interrupts:
        try:
            code = _run()
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        if interrupts.code is not None:
            code = interrupts.code
            say(code.name.lower())
        sys.exit(code)


def _run() -> int | str | None:
    try:
        app(auto_envvar_prefix="FP4BENCH")
    except SystemExit as end:
        return _flushed(end.code)
    except (BenchError, Fp4Error) as error:
        say(f"error: {error}")
        return _flushed(_exit_code(error))
    except OSError as error:
        say(f"error: {error}")
        return _flushed(Exit.ERROR)
    return None


def _flushed(code: int | str | None) -> int | str | None:
    """Say here that stdout took no more, which at the interpreter's end would be a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = Path(os.devnull).open("w")
        if not code:
            say(f"error: cannot write to stdout: {error.strerror}")
        return code or Exit.ERROR
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fp4bench {fp4bench.__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help=f"TOML with a table of options per command; default: {CONFIGURATION}"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options come from flags, then FP4BENCH_<COMMAND>_<OPTION>, then the TOML, then defaults."""
    if config is None and not CONFIGURATION.is_file():
        return
    group = context.command
    assert isinstance(group, TyperGroup)
    commands = {name: command.params for name, command in group.commands.items()}
    context.default_map = dict(configuration.defaults(config or CONFIGURATION, commands))


def _exit_code(error: BenchError | Fp4Error) -> Exit:
    if isinstance(error, BenchError):
        return error.exit_code
    if isinstance(error, DeviceError):
        return Exit.NO_DEVICE
    return Exit.USAGE if isinstance(error, FormatError | WorkloadError) else Exit.ERROR
