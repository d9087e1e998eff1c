"""Faults in a measuring process: each becomes a status with a reason, and the next trial runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_variants import FAULTY
from fp4bench.bench import Failure, RaceResult, Success
from fp4bench.timing import default_policy
from fp4bench.trials import Accuracy, Status
from fp4bench.worker import Setup, Worker
from fp4bench.workloads import Problem, WeightSource
from fp4kernels import registry
from fp4kernels.devices import Device, Toolchain
from fp4kernels.layouts import Layout
from fp4kernels.recipes import RECIPES
from fp4kernels.torch_gemm import TorchConfig
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

PROBLEM = Problem(GemmWorkload(4, 48, 64), WeightSource(), ("test",))
GOOD = Candidate("mxfp4", "torch_expand", Layout.CANONICAL, TorchConfig())


@pytest.fixture(scope="module")
def worker(cpu: Device, toolchain: Toolchain) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        for name, variant in FAULTY.items():
            patch.setitem(registry.VARIANTS, name, variant)  # type: ignore[arg-type]
        setup = Setup(cpu, toolchain, default_policy("cpu", "warm"), seed=0)
        with Worker(setup, module="faulty_variants") as worker:
            yield worker


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("segfault", Status.RUNTIME_ERROR, "the worker died with signal SIGSEGV"),
        ("leave", Status.RUNTIME_ERROR, "the worker died with exit code 7"),
        ("hang", Status.TIMEOUT, "no answer within 2 s; the worker was killed"),
        ("throw", Status.RUNTIME_ERROR, "RuntimeError: an illegal memory access"),
        ("exhaust", Status.RUNTIME_ERROR, "RuntimeError: "),
        ("lie", Status.WRONG, "elements outside the gate"),
        ("compile", Status.COMPILE_ERROR, "c++ exited with 1: error: no"),
    ],
)
def test_a_fault_is_a_status_with_a_reason(
    worker: Worker, fault: str, status: Status, reason: str
) -> None:
    candidate = Candidate("mxfp4", f"faulty_{fault}", Layout.CANONICAL, TorchConfig())
    limit = 2.0 if fault == "hang" else 60.0
    result = worker.evaluate(PROBLEM, candidate, None, limit)
    assert isinstance(result, Failure)
    assert result.status is status
    assert reason in result.reason
    assert isinstance(worker.evaluate(PROBLEM, GOOD, None, 60.0), Success)


def test_a_race_is_paired_and_the_gate_is_run_again(worker: Worker) -> None:
    result = worker.race(PROBLEM, [GOOD, GOOD], 0.05, 60.0)
    assert isinstance(result, RaceResult)
    counts = {len(m.samples_ns) for m in (*result.candidates, result.baseline)}
    assert len(counts) == 1
    wrong = Candidate("mxfp4", "faulty_lie", Layout.CANONICAL, TorchConfig())
    failed = worker.race(PROBLEM, [GOOD, wrong], 0.05, 60.0)
    assert isinstance(failed, Failure)
    assert failed.status is Status.WRONG


def test_validate_gives_both_errors(worker: Worker) -> None:
    result = worker.validate(PROBLEM, GOOD, 60.0)
    assert isinstance(result, Accuracy)
    assert 0 < result.kernel_error <= 1
    assert -25 < result.format_error_db < -8


@pytest.mark.parametrize("name", [*RECIPES])
def test_cold_operands_are_more_than_the_cache_holds(
    name: str, cpu: Device, toolchain: Toolchain
) -> None:
    from fp4bench.operands import Operands

    problem = Problem(GemmWorkload(2, 512, 1024), WeightSource(), ())
    operands = Operands(problem, cpu, default_policy("cpu", "cold"), 0)
    calls = operands.calls(lambda x, w, out: None, Layout.CANONICAL, RECIPES[name]).calls
    held = {call.args[1].codes.data_ptr() for call in calls}  # type: ignore[attr-defined]
    weight = 512 * 1024 * RECIPES[name].format.bits_per_value / 8
    assert len(held) == len(calls)
    assert len(calls) * weight >= 2 * cpu.cache_bytes
