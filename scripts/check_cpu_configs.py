"""Every legal configuration of the C++ GEMMs on every instruction set of this machine, through the gate.

    python scripts/check_cpu_configs.py --budget 600s [--out results/cpu-configs] [--isa avx2] [--sample 1]

The full search spaces of cpp_w4a4, cpp_w4a8 and cpp_w4a16, MXFP4 and NVFP4, each on three shapes with odd
tails of M and N, with Gaussian, outlying and widely scaled data and with all scale codes. Prefetching is an
instruction without effect on results: of objects that differ in its distance alone one is made. NEON is
left to tests/test_cpu_programs.py, which run it by an emulator.

The order is one of chance, the instruction sets in turn. What --out holds already of the same sources is
not run again, so that a second call goes on from there; --sample ends after so many configurations of
each instruction set. Objects are made in a folder of their own, and removed. Writes one file of gzip JSON
lines a call; exit 1 where a configuration fails.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import typer  # noqa: E402

from fp4bench.children import Children  # noqa: E402
from fp4bench.cpu_sweeping import (  # noqa: E402
    MODULE,
    MOST_CASES,
    CpuCase,
    cases,
    legal,
    products,
    prove,
    sources,
)
from fp4bench.sweep_records import Record  # noqa: E402
from fp4kernels.devices import own_levels, surroundings  # noqa: E402

OUT = ROOT / "results" / "cpu-configs"


def main(
    out: Annotated[Path, typer.Option(help="folder of the records")] = OUT,
    budget: Annotated[str, typer.Option(help="wall time in seconds, such as 600s")] = "600s",
    isa: Annotated[list[str] | None, typer.Option(help="an instruction set; all without")] = None,
    count: Annotated[int, typer.Option("--sample", help="of each, and no more")] = 0,
    workers: Annotated[int, typer.Option(help="configurations side by side")] = 2,
) -> None:
    """Prove what was not proven yet, until the time is up."""
    end = time.monotonic() + float(budget.rstrip("s"))
    isas = isa or own_levels()
    if unknown := {*isas} - {*own_levels()}:
        raise typer.BadParameter(f"this machine runs {', '.join(own_levels())}, but got {unknown}")
    every = cases(isas)
    wanted = every[: count * len(isas)] if count else every
    spaces = {(kernel.name, recipe): len(legal(kernel, recipe)) for kernel, recipe in products()}
    for (name, recipe), size in spaces.items():
        print(f"{size:6} legal configurations of {name} for {recipe}")
    print(f"{sum(spaces.values())} in all, {len(every) // len(isas)} but for prefetch, "
          f"on each of {', '.join(isas)}")  # fmt: skip
    with (
        Record(out, sources()) as record,
        tempfile.TemporaryDirectory(prefix="fp4-configs-", ignore_cleanup_errors=True) as folder,
    ):
        os.environ["XDG_CACHE_HOME"] = folder  # thousands of objects are no user's to keep
        children, pool = Children(MODULE, MOST_CASES), ThreadPoolExecutor(workers)

        def row(case: CpuCase) -> dict[str, Any] | None:
            return None if time.monotonic() > end else proven(children, case, many=not count)

        before = len(record.done)
        try:
            for found in pool.map(row, [case for case in wanted if case.key not in record.done]):
                if found is not None:
                    record.add(found)
        finally:
            children.kill()  # where Ctrl-C came
            pool.shutdown(cancel_futures=True)
            children.stop()
    known = sum(case.key in record.done for case in every)
    print(f"ran {len(record.done) - before} configurations; {known} of {len(every)} are known; "
          f"{len(record.failed)} failed")  # fmt: skip
    record.show_failures()
    raise SystemExit(bool(record.failed))


def proven(children: Children, case: CpuCase, many: bool) -> dict[str, Any]:
    """The row of the case."""
    start = time.perf_counter()
    outcome = prove(children, case, many)
    return {
        "key": case.key, **case.to_json(), "why": outcome.why,
        "used": round(outcome.used, 4) if outcome.why is None else None,
        "seconds": round(time.perf_counter() - start, 3),
        "compiler": surroundings("cpu")[1].compiler_version,
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
