"""What a resumed search does not try again."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from fp4bench.evidence import Evidence, Recorder
from fp4bench.progress import TuneProgress
from fp4bench.timing import default_policy
from fp4bench.trials import FailedTrial, Status
from fp4bench.tuner import Options, Tuner
from fp4bench.worker import Setup
from fp4bench.workloads import Problem, WeightSource
from fp4kernels import source
from fp4kernels.devices import Device, Toolchain
from fp4kernels.workloads import GemmWorkload
from samples import candidate

PROBLEM = Problem(GemmWorkload(8, 64, 64), WeightSource(), ("test",))


@pytest.mark.parametrize(
    ("status", "killed", "again"),
    [
        (Status.RUNTIME_ERROR, True, False),  # it crashed the measuring process
        (Status.TIMEOUT, True, False),
        (Status.WRONG, False, False),
        (Status.COMPILE_ERROR, True, False),  # it crashed the compiler
        (Status.COMPILE_ERROR, False, True),  # a full disk may have been mended
    ],
)
def test_what_killed_its_process_is_not_tried_again(
    tmp_path: Path, cpu: Device, toolchain: Toolchain, status: Status, killed: bool, again: bool
) -> None:
    setup = Setup(cpu, toolchain, default_policy("cpu", "cold"), seed=0)
    bad = candidate(mr=8)
    trial = FailedTrial.model_validate({
        "device": cpu, "toolchain": toolchain, "policy": setup.policy, "weights": "synthetic",
        "kernels": source.digest(), "workload": PROBLEM.workload, "status": status,
        "reason": "so it is", "killed": killed, "candidate_values": bad.to_json(),
    })  # fmt: skip
    options = Options(("mxfp4",), setup, "quick", budget=8.0)
    with Recorder(tmp_path) as recorder, TuneProgress(Console(quiet=True), 8.0) as progress:
        tuner = Tuner(options, recorder, Evidence((trial,), ()), progress)
        assert tuner._same(trial, PROBLEM) is not again
