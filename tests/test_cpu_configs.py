"""All configurations of the C++ GEMMs: which there are, what they are run on, and how failures show."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fp4bench import cpu_sweeping, scale_codes
from fp4bench.children import Children
from fp4bench.cpu_sweeping import SHAPES, CpuCase, cases, legal, products
from fp4bench.spaces import values_of
from fp4bench.sweep_records import rows
from fp4kernels import gate
from fp4kernels.cpu.gemm import CppGemm
from fp4kernels.devices import Device, Toolchain, own_levels
from fp4kernels.errors import BuildError
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES
from fp4kernels.scales import ScaleFormat
from fp4kernels.workloads import GemmWorkload

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import check_cpu_configs

UNIT = 2.0**-24
RECIPE_NAMES = [recipe for _, recipe in products()]
ONE = CpuCase(
    "portable", "cpp_w4a4", "mxfp4",
    {"mr": 2, "rg": 1, "kc": 0, "mc": 128, "panels": 1, "prefetch": 0},
)  # fmt: skip


def test_every_gemm_is_there_with_both_formats() -> None:
    assert [(kernel.name, recipe) for kernel, recipe in products()] == [
        ("cpp_w4a4", "mxfp4"), ("cpp_w4a4", "nvfp4"), ("cpp_w4a16", "mxfp4-w4a16"),
        ("cpp_w4a16", "nvfp4-w4a16"), ("cpp_w4a8", "mxfp4-w4a8"), ("cpp_w4a8", "nvfp4-w4a8"),
    ]  # fmt: skip


def test_of_every_legal_configuration_one_runs_that_differs_in_prefetch_alone() -> None:
    isas = ("one", "other")
    found = cases(isas)
    assert len({case.key for case in found}) == len(found)
    assert found == cases(isas)
    assert {case.isa for case in found[:2]} == {*isas}
    for kernel, recipe in products():
        own = [case for case in found if (case.variant, case.recipe) == (kernel.name, recipe)]
        run = [tuple(case.config.values())[:-1] for case in own if case.isa == "one"]
        assert [*ONE.config][-1] == "prefetch"
        every = [tuple(config.values().values())[:-1] for config in legal(kernel, recipe)]
        assert len(run) == len({*run}) == len(own) / 2
        assert {*run} == {*every}
        spread = values_of(kernel, "full")
        for field, values in spread.items():  # prefetch meets each value of every other field
            seen = {case.config[field] for case in own}
            assert field in ("mr", "rg") or seen == {*values}
            for value in seen if field != "prefetch" else ():
                objects = {bare(case) for case in own if case.config[field] == value}
                distances = {case.config["prefetch"] for case in own if case.config[field] == value}
                assert len(distances) == min(4, len(objects)), (field, value)


def bare(case: CpuCase) -> tuple[int, ...]:
    """What is compiled in."""
    return tuple(case.config[field] for field in ("mr", "rg", "panels", "prefetch"))


def test_the_legal_ones_are_those_of_some_product(cpu: Device, toolchain: Toolchain) -> None:
    work = GemmWorkload(1024, 4096, 8192)
    for kernel, name in products():
        for config in legal(kernel, name)[::97]:
            assert kernel.illegal(config, RECIPES[name], work, cpu, toolchain) is None


@pytest.mark.parametrize("which", scale_codes.BYTES)
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_cases_hold_every_scale_code(name: str, which: str) -> None:
    recipe, held = RECIPES[name], [scale_codes.case(which, RECIPES[name], s, 1) for s in SHAPES]
    low, high = scale_codes.BYTES[which]
    for operand, fmt in (("x", recipe.activations.format), ("w", recipe.format)):
        if operand == "x" and recipe.weight_only:
            continue
        e8m0 = fmt.scale is ScaleFormat.E8M0
        numbers = {*range(low, high + 1)} if e8m0 else {*range(256)} - {0x7F, 0xFF}
        nans = {255} if e8m0 else {0x7F, 0xFF}
        zeros = {254} if e8m0 else set()  # the scale of a block of zeros
        more = {"fast": zeros, "finite": set(), "all": nans}[which]
        parts = [getattr(case, operand).scales for case in held]
        found = {int(code) for part in parts for code in part.unique()}
        assert found == numbers | more
    assert all(case.shape == shape for case, shape in zip(held, SHAPES, strict=True))
    assert all(case.expected.shape == shape[:2] for case, shape in zip(held, SHAPES, strict=True))
    assert all(case.expected.isnan().any() == (which == "all") for case in held)
    assert all(case.expected.isfinite().float().mean() > 0.5 for case in held)


def right(case: gate.Case) -> Tensor:
    """What float32 makes of the case, infinities and all."""
    lost = case.expected.abs() >= scale_codes.MOST
    return torch.where(lost, case.expected.sign() * torch.inf, case.expected).float()


@pytest.mark.parametrize("name", ["mxfp4", "mxfp4-w4a16", "mxfp4-w4a8", "nvfp4-w4a8"])
def test_what_float32_cannot_hold_has_classes_that_the_gate_tells_apart(name: str) -> None:
    case = scale_codes.case(scale_codes.ALL, RECIPES[name], SHAPES[2], 1)
    out = right(case)
    assert {float("inf"), float("-inf")} <= {*out[~out.isnan()].unique().tolist()}
    tiny = (out != 0) & (out.abs() < 2.0**-127)
    assert tiny.any() or name == "nvfp4-w4a8"
    smallest = out[tiny].abs() > 2.0**-140  # these are more than steps of their own

    def why(change: Callable[[Tensor], Tensor]) -> str | None:
        def launch(x: Packed | Tensor, w: Packed, to: Tensor) -> None:
            to.copy_(change(out.clone()))

        launched = scale_codes.held(launch)
        layout = CppGemm.layout
        return gate.check(launched, layout, UNIT, case, torch.float32).why

    assert why(lambda right: right) is None
    assert why(lambda right: right.nan_to_num(0.0, torch.inf, -torch.inf)) is not None
    assert why(lambda right: torch.where(right.isinf(), torch.nan, right)) is not None
    assert why(lambda right: torch.where(right.isinf(), -right, right)) is not None
    assert why(lambda right: torch.where(right.isinf(), right.sign() * 2.0**127, right)) is not None
    if smallest.any():
        assert why(lambda right: torch.where(right.abs() < 2.0**-127, 0.0, right)) is not None


class Zeros(CppGemm):
    def build(self, *args: Any) -> Any:
        return lambda x, w, out: out.zero_()


class Refused(CppGemm):
    def build(self, *args: Any) -> Any:
        raise BuildError("c++ exited with 1: error: no such register")


@pytest.mark.parametrize(
    ("kernel", "why"), [(Zeros(), "outside the gate"), (Refused(), "no such register")]
)
def test_a_wrong_kernel_and_one_that_does_not_compile_fail(
    kernel: CppGemm, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_sweeping, "compile_object", lambda *args, **options: None)
    monkeypatch.setattr(cpu_sweeping, "SHAPES", [(5, 17, 64)] * len(SHAPES))
    monkeypatch.setattr(cpu_sweeping, "variant", lambda name: kernel)
    cpu_sweeping._inputs.cache_clear()
    assert why in (cpu_sweeping.run(ONE).why or "")
    cpu_sweeping._inputs.cache_clear()


def test_a_process_that_dies_is_a_failure_and_others_are_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    children = Children("faulty_cpu_prover", most=2)
    try:
        first, same, other = (cpu_sweeping.prove(children, ONE, True).used for _ in range(3))
        assert first == same != other
        dies = replace(ONE, config={**ONE.config, "panels": 0})
        why = cpu_sweeping.prove(children, dies, True).why or ""
        assert "SIGABRT" in why
        assert "free(): invalid pointer" in why
        assert cpu_sweeping.prove(children, ONE, True).why is None
    finally:
        children.stop()


def test_a_sample_passes_and_a_second_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # put back afterwards

    def call() -> tuple[object, str]:
        with pytest.raises(SystemExit) as end:
            check_cpu_configs.main(tmp_path, "200s", None, count=1, workers=2)
        return end.value.code, capsys.readouterr().out

    failed, said = call()
    assert not failed, said
    assert f"ran {len(own_levels())} configurations" in said
    found = [*rows(tmp_path)]
    assert [row["isa"] for row in found] == [*own_levels()]
    assert all(row["why"] is None and 0 < row["used"] <= 1 for row in found)
    with gzip.open(tmp_path / "zzz.jsonl.gz", "wt") as file:  # of another call, one of them cut
        file.write(json.dumps(found[0] | {"key": "a/b", "why": "outside the gate"}) + '\n{"ke')
    failed, said = call()
    assert failed
    assert "ran 0 configurations" in said
    assert "! a/b: outside the gate" in said
