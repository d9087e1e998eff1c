"""Covering arrays hold all pairs; some of their cases pass, the whole of them is for the script."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fp4bench import sweeping
from fp4bench.covering import covering
from fp4bench.sweeping import SIZES, Sweep, SweepCase
from fp4kernels.registry import VARIANTS
from fp4kernels.torch_gemm import TorchGemm
from fp4kernels.triton.variant import TritonVariant
from test_triton_quantize import ROOT, needs_triton

FACTORS = {"a": [1, 2, 3, 4, 5], "b": [*"xyz"], "c": [True, False], "d": [7, 8, 9], "e": [0]}
SAMPLE = 2  # small cases of each Triton kernel; all cases are for the script


def pairs(row: Mapping[str, Any]) -> set[tuple[tuple[str, Any], ...]]:
    return {*itertools.combinations(row.items(), 2)}


def test_every_pair_stands_in_some_row() -> None:
    rows = covering(FACTORS, lambda row: True)
    every = {
        ((one, x), (other, y))
        for one, other in itertools.combinations(FACTORS, 2)
        for x, y in itertools.product(FACTORS[one], FACTORS[other])
    }
    assert set().union(*map(pairs, rows)) == every
    assert 15 <= len(rows) <= 20  # no fewer could be, and the product has 90
    assert rows == covering(FACTORS, lambda row: True)


def test_rows_that_are_not_allowed_are_left_out() -> None:
    def allowed(row: Mapping[str, Any]) -> bool:
        return row["a"] + row["d"] <= 11 and not (row["c"] and row["b"] == "x")

    rows = covering(FACTORS, allowed)
    assert all(map(allowed, rows))
    product = (
        dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())
    )
    possible = set().union(*(pairs(row) for row in product if allowed(row)))
    assert set().union(*map(pairs, rows)) == possible


@needs_triton
@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if isinstance(v, TritonVariant)])
def test_an_array_covers_a_variants_space(name: str) -> None:
    sweep = Sweep(VARIANTS[name])
    array = sweep.array()
    keys = [case.key for case in array]
    assert len({*keys}) == len(keys)
    # no array has fewer rows than two factors have pairs
    *_, one, other = sorted(map(len, sweep.factors.values()))
    assert len(keys) < max(80, 1.25 * one * other)
    assert len(array) * 20 < sweep.count
    for field, values in sweep.factors.items():
        found = {case.config.get(field, getattr(case, field, None)) for case in array}
        assert found == {*values}, field
    shapes = {case.size: case.shape for case in array}
    assert {*shapes} == {*SIZES}
    rows, columns, _ = shapes["ragged"]
    multiple = VARIANTS[name].multiples[0]
    assert rows % 2 == columns // multiple % 2 == 1
    assert columns % multiple == 0


class Zeros(TorchGemm):
    def build(self, *args: Any) -> Any:
        return lambda x, w, out: out.zero_()


class Breaks(TorchGemm):
    def build(self, *args: Any) -> Any:
        raise AssertionError("an interpreter's own error")


@pytest.mark.parametrize(
    ("kernel", "why"), [(Zeros(), "outside the gate"), (Breaks(), "AssertionError: an interp")]
)
def test_a_wrong_kernel_fails(kernel: TorchGemm, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = SweepCase("torch_expand", "mxfp4", {}, "ragged", "scales", "float32")
    assert sweeping.run(case).why is None
    monkeypatch.setattr(sweeping, "variant", lambda name: kernel)
    assert why in (sweeping.run(case).why or "")


@needs_triton
def test_a_sample_of_the_arrays_passes(tmp_path: Path) -> None:
    command = [
        sys.executable, "-W", "ignore", str(ROOT / "scripts" / "check_sweep.py"),
        "--out", str(tmp_path), "--sample", str(SAMPLE), "--budget", "200s",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    kernels = [v for v in VARIANTS.values() if isinstance(v, TritonVariant)]
    assert f"ran {SAMPLE * len(kernels)} cases" in ran.stdout
    assert "0 failed" in ran.stdout
    (file,) = tmp_path.iterdir()
    with gzip.open(file, "rt") as source:
        rows = [json.loads(line) for line in source]
    assert {row["variant"] for row in rows} == {v.name for v in kernels}
    assert all(row["why"] is None and 0 <= row["used"] <= 1 for row in rows)
