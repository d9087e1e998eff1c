"""Rows as one flat table, filtered and sorted: what `show` prints and a notebook starts from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fp4bench.errors import UsageError
from fp4bench.trials import (
    AnyRow,
    FailedTrial,
    FormatAccuracy,
    Limits,
    Measurement,
    PassedTrial,
    Race,
)  # fmt: skip
from fp4kernels.attention.workload import Workload
from fp4kernels.registry import candidate_from_json
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    import pandas as pd

ABSENT = "ABSENT"  # a baseline that could not take part in a race
# name → type; documented in results/README.md
COLUMNS = {
    "record": "Int64", "kind": "string", "role": "string", "status": "string", "reason": "string",
    "killed": "boolean",
    "shape": "string", "m": "Int64", "n": "Int64", "k": "Int64", "activation_dtype": "string", "output_dtype": "string",
    "direction": "string", "weights": "string",
    "recipe": "string", "variant": "string", "layout": "string", "config": "string",
    "median_us": "float64", "low_us": "float64", "high_us": "float64", "gflops": "float64",
    "samples": "Int64", "calls": "Int64", "warmup_calls": "Int64", "timer": "string",
    "kernel_error": "float64", "format_error_db": "float64",
    "launch": "string", "cache": "string", "device": "string", "arch": "string", "cores": "Int64",
    "torch": "string", "triton": "string", "ptxas": "string", "driver": "string",
    "compiler": "string", "compiler_version": "string", "kernels": "string", "time": "datetime64[us, UTC]",
    "load_average": "float64", "steal": "float64", "mhz": "float64", "memory_mhz": "float64",
    "watts": "float64", "celsius": "float64", "event_reasons": "Int64", "throttled": "boolean",
    "joules_per_call": "float64",
    "data": "string", "model": "string", "tensor": "string", "seed": "Int64",
    "format": "string", "rule": "string", "rounding": "string", "transform": "string",
    "outliers": "string", "weight_only": "boolean", "activation": "string",
    "bits_per_value": "float64", "relative_mse": "float64", "effective_bits": "float64",
    "sqnr_db": "float64", "cosine": "float64", "max_error": "float64",
    "op": "string", "batch": "Int64", "queries": "Int64", "context": "Int64", "heads": "Int64",
    "kv_heads": "Int64", "head_dim": "Int64", "window": "Int64", "page_size": "Int64",
    "rmse": "float64", "mean_error": "float64", "lse_error": "float64",
}  # fmt: skip


@dataclass(frozen=True)
class Filters:
    """Columns and the values that are wanted of each; an empty selection wants all."""

    wanted: Mapping[str, Sequence[object]]

    def pick(self, data: pd.DataFrame) -> pd.DataFrame:
        for column, values in self.wanted.items():
            data = data[data[column].isin(list(values))]
        return data

    def hint(self, data: pd.DataFrame) -> str:
        """Why nothing is left of `data`: the first filter that alone leaves nothing, else all."""
        for column, values in self.wanted.items():
            if not data[column].isin(list(values)).any():
                there = sorted(map(str, data[column].dropna().unique()))
                some = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
                asked = ", ".join(map(str, values))
                return f"no row has {column} {asked}; there are: {some or 'none'}"
        asked = ", ".join(f"{c} {'/'.join(map(str, v))}" for c, v in self.wanted.items())
        return f"each filter leaves rows, but none has all of: {asked}; give fewer"


def ordered(data: pd.DataFrame, column: str, descending: bool) -> pd.DataFrame:
    """Sorted by a column, rows without a value last. UsageError where there is none of that name."""
    if column not in data.columns:
        raise UsageError(f"--sort takes one of {', '.join(COLUMNS)}, but got {column!r}")
    return data.sort_values(column, ascending=not descending, kind="stable", na_position="last")


def flat(rows: Iterable[AnyRow]) -> pd.DataFrame:
    """COLUMNS of every trial, every entry of a race and every accuracy, without device limits."""
    import pandas as pd  # slow to import, and a tune has no use for it

    found = [
        values
        for record, row in enumerate(rows)
        if not isinstance(row, Limits)
        for values in ({"record": record, **entry} for entry in _entries(row))
    ]
    data = pd.DataFrame(found, columns=list(COLUMNS), dtype=object)
    data["time"] = pd.to_datetime(data["time"], utc=True)
    return data.astype(COLUMNS)


def _entries(row: PassedTrial | FailedTrial | Race | FormatAccuracy) -> Iterator[dict[str, Any]]:
    if isinstance(row, FormatAccuracy):
        yield _accuracy(row)
        return
    shared = _shared(row)
    if isinstance(row, FailedTrial):
        failed = {"status": row.status.value, "reason": row.reason, "killed": row.killed}
        yield {**shared, **_candidate(row.candidate_values), "role": "trial", **failed}
    elif isinstance(row, PassedTrial):
        yield {**shared, **_candidate(row.candidate_values), **_errors(row),
               **_measured(row.measurement, row.workload), "role": "trial"}  # fmt: skip
    else:
        yield {**shared, **_candidate(row.default_values),
               **_measured(row.default, row.workload), "role": "default"}  # fmt: skip
        yield {**shared, **_candidate(row.tuned_values), **_errors(row),
               **_measured(row.tuned, row.workload), "role": "tuned"}  # fmt: skip
        for name, measured in row.baselines.items():
            yield {**shared, **_measured(measured, row.workload), "role": name}
        for name, why in row.absent.items():
            yield {**shared, "role": name, "status": ABSENT, "reason": why}


def _accuracy(row: FormatAccuracy) -> dict[str, Any]:
    own = row.model_dump(exclude={"schema_version", "device", "toolchain"})
    return {
        **own, **_made_on(row), "recipe": row.recipe, "shape": f"{row.m}×{row.n}×{row.k}",
        "effective_bits": row.effective_bits, "sqnr_db": row.sqnr_db,
    }  # fmt: skip


def _shared(row: PassedTrial | FailedTrial | Race) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "recipe": row.recipe if isinstance(row, Race) else None,
        **_asked(row.workload),
        "weights": row.weights, "kernels": row.kernels, "time": row.time,
        "launch": row.policy.launch, "cache": row.policy.cache, **_made_on(row),
    }  # fmt: skip


def _asked(work: Workload) -> dict[str, Any]:
    if isinstance(work, GemmWorkload):
        return {
            "op": "gemm", "shape": work.label, "m": work.m, "n": work.n, "k": work.k,
            "direction": work.role, "activation_dtype": work.activation_dtype,
            "output_dtype": work.output_dtype,
        }  # fmt: skip
    return {
        "op": "attention", "shape": work.label, "direction": str(work.phase),
        "batch": work.batch, "queries": work.queries, "context": work.keys, "heads": work.heads,
        "kv_heads": work.kv_heads, "head_dim": work.head_dim, "window": work.window,
        "page_size": work.page_size, "activation_dtype": work.dtype, "output_dtype": work.dtype,
    }  # fmt: skip


def _errors(row: PassedTrial | Race) -> dict[str, Any]:
    """Attention's own are the columns that a format's have, and some more."""
    found = row.accuracy.model_dump(exclude={"attention"})
    own = row.accuracy.attention
    if own is None:
        return found
    return {
        **found, "sqnr_db": own.sqnr_db, "cosine": own.cosine, "rmse": own.rmse,
        "max_error": own.max, "mean_error": own.mean, "lse_error": own.lse,
    }  # fmt: skip


def _made_on(row: PassedTrial | FailedTrial | Race | FormatAccuracy) -> dict[str, Any]:
    device, chain = row.device, row.toolchain
    return {
        "device": device.name, "arch": device.arch, "cores": device.cores,
        "torch": chain.torch, "triton": chain.triton, "ptxas": chain.ptxas,
        "driver": chain.driver, "compiler": chain.compiler,
        "compiler_version": chain.compiler_version,
    }  # fmt: skip


def _candidate(values: dict[str, Any]) -> dict[str, Any]:
    candidate = candidate_from_json(values)
    return {
        "recipe": candidate.recipe, "variant": candidate.variant,
        "layout": candidate.layout.value, "config": candidate.config.label,
    }  # fmt: skip


def _measured(measured: Measurement, workload: Workload) -> dict[str, Any]:
    low, high = measured.interval_ns
    return {
        "status": "OK",
        "median_us": measured.median_ns / 1e3, "low_us": low / 1e3, "high_us": high / 1e3,
        "gflops": measured.gflops(workload), "samples": len(measured.samples_ns),
        "calls": measured.calls, "warmup_calls": measured.warmup_calls, "timer": measured.timer,
        "launch": measured.policy.launch, "cache": measured.policy.cache,
        **measured.telemetry.model_dump(),
    }  # fmt: skip
