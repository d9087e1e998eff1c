"""`fp4bench compare`: what became slower between two recorded runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fp4bench import compare as compare_module
from fp4bench import evidence, matching, present
from fp4bench.cli.options import JsonOption, share
from fp4bench.cli.output import print_json, say, stdout, warn_of
from fp4bench.compare import Comparison
from fp4bench.errors import BenchError, Exit
from fp4bench.estimates import ENOUGH


def compare(
    a: Annotated[Path, typer.Argument(help="results before: a file or a folder")],
    b: Annotated[Path, typer.Argument(help="results after")],
    threshold: Annotated[str, typer.Option(help="what is still a tie")] = "5%",
    as_json: JsonOption = False,
) -> None:
    """Name what is slower in B than in A. Exit 5 if a default or a chosen kernel is."""
    limit = share(threshold)
    before, after = evidence.read(a), evidence.read(b)
    for found in (before, after):
        warn_of(found)
    compared = compare_module.compare(before, after, limit)
    if as_json:
        print_json(compared.to_json())
    else:
        _print(compared)
    if not compared.pairs:
        reasons = [str(one) for one in compared.incomparable] or ["neither holds a race"]
        raise BenchError(f"compare needs a race that both have, but found none; {reasons[0]}")
    if compared.regressions:
        raise typer.Exit(Exit.REGRESSION)


def _print(compared: Comparison) -> None:
    if compared.pairs:
        stdout.print(present.comparison_table(compared.pairs, stdout.width))
    for line in matching.grouped(compared.incomparable):
        stdout.print(f"not comparable: {line}", markup=False, highlight=False, soft_wrap=True)
    counts = ", ".join(f"{compared.count(v)} {v}" for v in ("slower", "faster", "tie"))
    stdout.print(f"{counts}, {len(compared.incomparable)} not comparable; "
                 f"a tie is within {compared.threshold:.1%}", highlight=False)  # fmt: skip
    noise = compared.noise
    if noise.races >= ENOUGH:
        stdout.print(
            f"between the runs the baselines drifted by {math.expm1(noise.drift):+.1%}, and what no "
            f"one changed scattered by ±{math.expm1(noise.candidates):.1%}: no "
            "smaller change can be told (`bench --passes 8` tells smaller ones)", highlight=False, soft_wrap=True,
        )  # fmt: skip
    ours, theirs = compared.kernels
    if ours != theirs:
        stdout.print(f"kernels {', '.join(ours)} against {', '.join(theirs)}: they may differ, "
                     "since they are what is compared", highlight=False, soft_wrap=True)  # fmt: skip
    for pair in compared.regressions:
        say(f"slower: {pair.a.race.workload.label} {pair.a.race.recipe} {pair.role} by "
            f"{pair.ratio - 1:.0%} [{pair.low - 1:.0%}, {pair.high - 1:.0%}]")  # fmt: skip
