"""Every variant x recipe x configuration of its full space x size x data, through the gate, without a GPU.

    python scripts/check_sweep.py --budget 600s [--out results/sweeps] [--sample 30]

Triton's kernels run under its interpreter. First come covering arrays, in which every pair of values of
two factors stands somewhere, then the whole product in an order of chance. What --out holds already of
the same sources is not run again, so that a second call goes on from there. With --sample only so many
small cases of the array of each Triton kernel run, always the same ones. Writes one file of gzip JSON
lines a call; exit 1 where a case fails.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
INTERPRET = "TRITON_INTERPRET"
if os.environ.get(INTERPRET) != "1":  # it must be set before triton is imported
    os.environ[INTERPRET] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606

import torch  # noqa: E402
import triton  # noqa: E402
import typer  # noqa: E402

from fp4bench.sweeping import SweepCase, arrays, everything, run, sample, sweeps  # noqa: E402
from fp4kernels.source import digest  # noqa: E402

SHOWN = 10  # failures


def main(
    out: Annotated[Path, typer.Option(help="folder of the records")] = ROOT / "results" / "sweeps",
    budget: Annotated[str, typer.Option(help="wall time in seconds, such as 600s")] = "600s",
    count: Annotated[int, typer.Option("--sample", help="cases of each array, and no more")] = 0,
) -> None:
    """Prove what was not proven yet, until the time is up."""
    end = time.monotonic() + float(budget.rstrip("s"))
    out.mkdir(parents=True, exist_ok=True)
    prior = [row for row in records(out) if row["source"] == digest()]
    done, failed = {row["key"] for row in prior}, [row for row in prior if row["why"]]
    file = out / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.jsonl.gz"
    first = sample(count) if count else arrays()
    counts: Counter[str] = Counter()
    with gzip.open(file, "wt") as target:
        for case in itertools.chain(first, () if count else everything()):
            if case.key in done:
                continue
            if time.monotonic() > end:
                break
            row = record(case)
            target.write(json.dumps(row) + "\n")
            target.flush()  # what a call that is killed has proven stays
            done.add(case.key)
            counts[case.variant] += 1
            failed += [row] if row["why"] else []
    covered = sum(case.key in done for case in first)
    print(f"ran {counts.total()} cases: {dict(counts)}")
    print(f"{covered} of {len(first)} of the covering arrays or the sample, {len(done)} in all, of about "
          f"{sum(sweep.count for sweep in sweeps())}; {len(failed)} failed")  # fmt: skip
    for row in failed[:SHOWN]:
        print(f"! {row['key']}: {row['why']}")
    raise SystemExit(bool(failed))


def record(case: SweepCase) -> dict[str, Any]:
    start = time.perf_counter()
    outcome = run(case)
    return {
        "key": case.key, **case.to_json(), "shape": case.shape, "why": outcome.why,
        "used": round(outcome.used, 4) if outcome.why is None else None,
        "seconds": round(time.perf_counter() - start, 3), "source": digest(),
        "torch": str(torch.__version__), "triton": str(triton.__version__),
    }  # fmt: skip


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """All whole lines: a call that was killed leaves a file without its end."""
    for file in sorted(folder.glob("*.jsonl.gz")):
        try:
            with gzip.open(file, "rt") as source:
                for line in source:
                    yield json.loads(line)
        except (EOFError, json.JSONDecodeError):
            continue


if __name__ == "__main__":
    typer.run(main)
