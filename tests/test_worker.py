"""Faults in a measuring process: each becomes a status with a reason, and the next trial runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_variants import FAULTY
from fp4bench.bench import FINAL
from fp4bench.errors import OperandsError
from fp4bench.operands import Operands
from fp4bench.outcomes import Failure, Success
from fp4bench.racing import paired_ratio
from fp4bench.timing import default_policy
from fp4bench.trials import REFERENCE, Accuracy, Status
from fp4bench.worker import RaceOptions, Setup, Worker
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
SHORT = RaceOptions(seconds=0.05, limit=60.0)


def faulty(name: str) -> Candidate:
    return Candidate("mxfp4", f"faulty_{name}", Layout.CANONICAL, TorchConfig())


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
        ("segfault", Status.RUNTIME_ERROR, "the process died with signal SIGSEGV"),
        ("leave", Status.RUNTIME_ERROR, "the process died with exit code 7"),
        ("hang", Status.TIMEOUT, "no answer within 2 s; the process was killed"),
        ("spin", Status.TIMEOUT, "no answer within 2 s; the process was killed"),
        ("throw", Status.RUNTIME_ERROR, "RuntimeError: an illegal memory access"),
        ("exhaust", Status.RUNTIME_ERROR, "RuntimeError: "),
        ("overrun", Status.RUNTIME_ERROR, "the process died with signal SIGSEGV"),
        ("underrun", Status.WRONG, "wrote outside its output"),
        ("lie", Status.WRONG, "elements outside the gate"),
        ("nan", Status.WRONG, "got nan"),
        ("scratch", Status.WRONG, "got nan"),
        ("yesterday", Status.WRONG, "elements outside the gate"),
        ("compile", Status.COMPILE_ERROR, "c++ exited with 1: error: no"),
    ],
)
def test_a_fault_is_a_status_with_a_reason(
    worker: Worker, fault: str, status: Status, reason: str
) -> None:
    limit = 2.0 if fault in ("hang", "spin") else 60.0
    result = worker.evaluate(PROBLEM, faulty(fault), None, limit)
    assert isinstance(result, Failure)
    assert result.status is status
    assert reason in result.reason
    assert result.killed == ("process" in reason)


def test_memory_without_end_ends_at_the_process_limit(worker: Worker) -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs Linux")
    assert isinstance(worker.evaluate(PROBLEM, GOOD, None, 60.0), Success)
    assert worker._child is not None
    process = worker._child._process.pid
    own, hard = resource.prlimit(process, resource.RLIMIT_DATA)
    assert own != resource.RLIM_INFINITY  # what stops it on a real bad day; here, much sooner
    resource.prlimit(process, resource.RLIMIT_DATA, (min(own, 2 << 30), hard))
    result = worker.evaluate(PROBLEM, faulty("eat"), None, 60.0)
    assert isinstance(result, Failure)
    assert result.status is Status.RUNTIME_ERROR
    assert "the process died with signal SIGABRT" in result.reason
    assert isinstance(worker.evaluate(PROBLEM, GOOD, None, 60.0), Success)


def test_a_kill_reaches_what_the_kernel_started(worker: Worker) -> None:
    def sleepers() -> list[str]:
        found = []
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with open(line, "rb") as file:  # noqa: PTH123  (it may be gone by now)
                found.append(file.read().decode())
        return [command for command in found if "time.sleep(3600)" in command]

    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs /proc")
    worker.evaluate(PROBLEM, faulty("spin"), None, 2.0)
    end = time.monotonic() + 5
    while sleepers() and time.monotonic() < end:
        time.sleep(0.05)
    assert sleepers() == []


def test_a_spare_takes_over_without_a_wait(worker: Worker) -> None:
    worker.keep_spare()
    assert isinstance(worker.evaluate(PROBLEM, GOOD, None, 60.0), Success)
    spare = worker._spare
    assert spare is not None
    state = Path(f"/proc/{spare._process.pid}/stat")
    if state.exists():
        assert state.read_text().rpartition(") ")[2][0] == "T"  # stopped while something is timed
    worker.keep_spare()
    spare._await(60.0)  # it has imported all it needs
    worker.evaluate(PROBLEM, faulty("leave"), None, 60.0)
    assert isinstance(worker.evaluate(PROBLEM, GOOD, None, 60.0), Success)
    assert worker._child is spare


def test_a_race_is_paired(worker: Worker) -> None:
    raced = worker.race(PROBLEM, [GOOD, GOOD], SHORT)
    assert isinstance(raced, tuple)
    (result,) = raced
    counts = {len(m.samples_ns) for m in (*result.candidates, result.baselines[REFERENCE])}
    assert len(counts) == 1


def test_a_race_under_several_policies(worker: Worker) -> None:
    policies = (default_policy("cpu", "cold"), default_policy("cpu", "warm"))
    raced = worker.race(PROBLEM, [GOOD], RaceOptions(0.05, 60.0, policies))
    assert isinstance(raced, tuple)
    assert [result.candidates[0].policy for result in raced] == [*policies]


def test_a_process_put_aside_in_the_middle_of_a_race_changes_no_verdict(worker: Worker) -> None:
    """As when the host stops a virtual machine: the clock jumps by a second."""
    assert isinstance(worker.race(PROBLEM, [GOOD, GOOD], SHORT), tuple)  # warm
    assert worker._child is not None
    group = worker._child._process.pid

    def interrupt() -> None:
        time.sleep(0.2)
        os.killpg(group, signal.SIGSTOP)
        time.sleep(1.0)
        os.killpg(group, signal.SIGCONT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    raced = worker.race(PROBLEM, [GOOD, GOOD], RaceOptions(1.5, 60.0))
    thread.join()
    assert isinstance(raced, tuple)
    first, second = raced[0].candidates
    assert len(first.samples_ns) == len(second.samples_ns)
    assert paired_ratio(first, second).verdict == "tie"


def test_proofs_give_both_errors_and_know_wrong_ones(worker: Worker) -> None:
    result = worker.prove(PROBLEM, GOOD, FINAL, 60.0)
    assert isinstance(result, Accuracy)
    assert 0 < result.kernel_error <= 1
    assert -25 < result.format_error_db < -8
    wrong = worker.prove(PROBLEM, faulty("lie"), FINAL, 60.0)
    assert isinstance(wrong, Failure)
    assert wrong.status is Status.WRONG


def test_operands_that_cannot_be_made_are_no_candidates_fault(worker: Worker) -> None:
    lost = Problem(GemmWorkload(4, 48, 64), WeightSource("/nowhere.safetensors", "w"), ("test",))
    with pytest.raises(OperandsError, match=r"4×48×64 could not be made: .*nowhere"):
        worker.evaluate(lost, GOOD, None, 60.0)
    assert isinstance(worker.evaluate(PROBLEM, GOOD, None, 60.0), Success)


def test_baselines_are_tried_before_they_race(worker: Worker) -> None:
    assert worker.try_baseline(PROBLEM, REFERENCE) is None
    absent = worker.try_baseline(PROBLEM, "torch_fp4")
    assert isinstance(absent, Failure)
    assert "sm_100" in absent.reason


def test_limits_come_from_the_measuring_process(worker: Worker, cpu: Device) -> None:
    found = worker.limits()
    assert not isinstance(found, Failure)
    assert found.device == cpu
    assert found.memory_read is not None


@pytest.mark.parametrize("name", [*RECIPES])
def test_cold_operands_are_more_than_the_cache_holds(
    name: str, cpu: Device, toolchain: Toolchain
) -> None:
    problem = Problem(GemmWorkload(2, 512, 1024), WeightSource(), ())
    operands, policy = Operands(problem, cpu, 0), default_policy("cpu", "cold")
    calls = operands.calls(lambda x, w, out: None, Layout.CANONICAL, RECIPES[name], policy).calls
    weights = [call.args[1] for call in calls]  # type: ignore[attr-defined]
    held = {weight.codes.data_ptr() for weight in weights}
    assert len(held) == len(calls)
    assert sum(w.codes.nbytes + w.scales.nbytes for w in weights) >= 2 * cpu.cache_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="bound to its parent by Linux's prctl")
def test_a_paused_process_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """Paused at once, as a spare is: one that slept before it was bound would sleep for ever."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from fp4bench.child import Child\n"
        "children = [Child('fp4bench.worker', b'', {}) for _ in range(4)]\n"
        "for at in range(4):\n"
        "    [child.pause() for child in children]\n"
        "    time.sleep(0.05 * at)\n"
        "print(*(child._process.pid for child in children), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))
    ran = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    left = [Path(f"/proc/{pid}") for pid in ran.stdout.split()]
    assert len(left) == 4
    end = time.monotonic() + 30
    while any(_alive(process) for process in left) and time.monotonic() < end:
        time.sleep(0.1)
    assert [process for process in left if _alive(process)] == []


def _alive(process: Path) -> bool:
    try:
        return "(zombie)" not in (process / "status").read_text()
    except OSError:
        return False
