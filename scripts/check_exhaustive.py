"""How far what a short tune found is from the best of the whole space, on a problem that was tried whole.

    python -m fp4bench tune --shape 8x1536x576 --shape 512x1536x576 --recipe mxfp4 --budget 20m --out build/whole
    python -m fp4bench tune --preset smollm2-135m --budget 90s --out build/short
    python scripts/check_exhaustive.py build/whole/results/DEVICE build/short/results/DEVICE/table.json

A tune whose budget is long enough tries every candidate; its rows are kept for replay. Races the table's
kernel, the default, and the BEST candidates of the rows with each other. Exit 1 where the rows are not
the whole space, or the table's kernel takes more than 3% longer than the best of these.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import typer  # noqa: E402

from fp4bench import evidence, timing  # noqa: E402
from fp4bench.outcomes import Failure  # noqa: E402
from fp4bench.racing import paired_ratio  # noqa: E402
from fp4bench.spaces import Space  # noqa: E402
from fp4bench.trials import PassedTrial  # noqa: E402
from fp4bench.worker import RaceOptions, Setup, Worker  # noqa: E402
from fp4bench.workloads import from_shapes  # noqa: E402
from fp4kernels.devices import Device, probe_device, probe_toolchain  # noqa: E402
from fp4kernels.tables import Table  # noqa: E402

BEST, ALLOWED = 4, 1.03


def main(
    rows: Annotated[Path, typer.Argument(help="rows of an exhaustive tune")],
    table: Annotated[Path, typer.Argument(help="table.json of a short one")],
    effort: Annotated[str, typer.Option(help="whose space was tried: quick or full")] = "quick",
    seconds: Annotated[float, typer.Option(help="of each race")] = 20.0,
) -> None:
    """Race them for every workload and recipe of the rows."""
    here = probe_device("cpu")
    setup = Setup(here, probe_toolchain("cpu"), timing.default_policy("cpu", "cold"), seed=0)
    chosen, wrong = Table.read(table), 0
    tried = by_problem(rows, here)
    if not tried:
        raise SystemExit(f"{rows} has no trial of this device, {here.slug}")
    with Worker(setup) as worker:
        for (m, n, k, recipe), trials in tried.items():
            (problem,) = from_shapes([f"{m}x{n}x{k}"])
            space = Space(problem.workload, (recipe,), here, setup.toolchain, effort)
            left = {*space.candidates[recipe]} - {trial.candidate for trial in trials}
            best = [t.candidate for t in sorted(trials, key=beside_default)[:BEST]]
            tuned, default = chosen.lookup(n, k, recipe).choose(m), space.default(recipe)
            entrants = [*dict.fromkeys((tuned, default, *best))]
            how = RaceOptions(seconds, 600, (setup.policy,), (), energy=False)
            raced = worker.race(problem, entrants, how)
            if isinstance(raced, Failure):
                raise SystemExit(raced.reason)
            times = dict(zip(entrants, raced[0].candidates, strict=True))
            ratios = {one: paired_ratio(times[tuned], times[one]) for one in best}
            worst = max(ratios.values(), key=lambda ratio: ratio.middle)
            missed = worst.middle > ALLOWED or bool(left)
            wrong += missed
            print(f"{m}x{n}x{k} {recipe}: {len(space.candidates[recipe])} candidates, "
                  f"{len(left)} not tried; the best of them are {worst.middle:.3f}x "
                  f"[{worst.low:.3f}, {worst.high:.3f}] as fast as the table's, the default is "
                  f"{paired_ratio(times[tuned], times[default]).middle:.3f}x"
                  f"{'  MISSED' * missed}", flush=True)  # fmt: skip
            for one in entrants:
                roles = " (the table's)" * (one == tuned) + " (the default)" * (one == default)
                print(f"    {one.config.label}{roles}")
    raise SystemExit(wrong > 0)


def by_problem(rows: Path, here: Device) -> dict[tuple[int, int, int, str], list[PassedTrial]]:
    """(M, N, K, recipe) → what was measured of it on this device."""
    found: dict[tuple[int, int, int, str], list[PassedTrial]] = {}
    for trial in evidence.read(rows).trials:
        if isinstance(trial, PassedTrial) and trial.device == here:
            work = trial.gemm
            found.setdefault((work.m, work.n, work.k, trial.candidate.recipe), []).append(trial)
    return found


def beside_default(trial: PassedTrial) -> float:
    assert trial.beside_default is not None
    return trial.beside_default


if __name__ == "__main__":
    typer.run(main)
