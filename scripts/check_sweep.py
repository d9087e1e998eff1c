"""Every variant x recipe x configuration of its full space x size x data, through the gate, without a GPU.

    python scripts/check_sweep.py --budget 600s [--out results/sweeps] [--sample 30]

Triton's kernels run under its interpreter. First come covering arrays, in which every pair of values of
two factors stands somewhere, then the whole product in an order of chance. What --out holds already of
the same sources is not run again, so that a second call goes on from there. With --sample only so many
small cases of the array of each Triton kernel run, always the same ones. Writes one file of gzip JSON
lines a call; exit 1 where a case fails.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
INTERPRET = "TRITON_INTERPRET"
if os.environ.get(INTERPRET) != "1":  # it must be set before triton is imported
    os.environ[INTERPRET] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606

import triton  # noqa: E402
import typer  # noqa: E402

from fp4bench.sweep_records import Record  # noqa: E402
from fp4bench.sweeping import SweepCase, arrays, everything, run, sample, sweeps  # noqa: E402
from fp4kernels.source import digest  # noqa: E402


def main(
    out: Annotated[Path, typer.Option(help="folder of the records")] = ROOT / "results" / "sweeps",
    budget: Annotated[str, typer.Option(help="wall time in seconds, such as 600s")] = "600s",
    count: Annotated[int, typer.Option("--sample", help="cases of each array, and no more")] = 0,
) -> None:
    """Prove what was not proven yet, until the time is up."""
    end = time.monotonic() + float(budget.rstrip("s"))
    first = sample(count) if count else arrays()
    counts: Counter[str] = Counter()
    with Record(out, digest()) as record:
        for case in itertools.chain(first, () if count else everything()):
            if case.key in record.done:
                continue
            if time.monotonic() > end:
                break
            record.add(proven(case))
            counts[case.variant] += 1
    covered = sum(case.key in record.done for case in first)
    print(f"ran {counts.total()} cases: {dict(counts)}")
    print(f"{covered} of {len(first)} of the covering arrays or the sample, {len(record.done)} in all, of about "
          f"{sum(sweep.count for sweep in sweeps())}; {len(record.failed)} failed")  # fmt: skip
    record.show_failures()
    raise SystemExit(bool(record.failed))


def proven(case: SweepCase) -> dict[str, Any]:
    """The row of the case."""
    start = time.perf_counter()
    outcome = run(case)
    return {
        "key": case.key, **case.to_json(), "shape": case.shape, "why": outcome.why,
        "used": round(outcome.used, 4) if outcome.why is None else None,
        "seconds": round(time.perf_counter() - start, 3), "triton": str(triton.__version__),
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
