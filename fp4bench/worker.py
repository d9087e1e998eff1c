"""The measuring process: its own interpreter, killable, with a time limit for every request.

Requests and replies are JSON over a pipe: a damaged child can send nothing but data.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, Literal, Self

import pydantic

from fp4bench.bench import Bench, Failure, RaceResult, Success
from fp4bench.trials import Accuracy, Policy, Status
from fp4bench.workloads import Problem
from fp4kernels.devices import Device, Toolchain
from fp4kernels.registry import candidate_from_json
from fp4kernels.variants import Candidate

# torch's OpenMP threads spin for milliseconds after their work, on the cores that the next
# candidate of a race is timed on; this is some 0.2 ms, enough for calls in a row
_SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}
READY = b"ready"
START_SECONDS = 180.0  # importing torch on a loaded machine


@dataclass(frozen=True)
class Setup:
    """What a worker learns once."""

    device: Device
    toolchain: Toolchain
    policy: Policy
    seed: int


@dataclass(frozen=True)
class Request:
    """A method of Bench and its arguments; `candidates` as Candidate.to_json."""

    method: Literal["evaluate", "race", "validate"]
    problem: Problem
    candidates: list[dict[str, Any]]
    best_ns: float | None = None
    seconds: float = 0.0


Reply = Success | Failure | RaceResult | Accuracy
_SETUP, _REQUEST = pydantic.TypeAdapter(Setup), pydantic.TypeAdapter(Request)
_REPLY: pydantic.TypeAdapter[Reply] = pydantic.TypeAdapter(Reply)


class Worker:
    """Calls a Bench in another process; a crash or a hang becomes a Failure.

    `module` is what the process runs: this one, or one that adds kernel variants to it.
    """

    def __init__(self, setup: Setup, module: str = "fp4bench.worker") -> None:
        self._setup, self._module = setup, module
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[bytes, bytes] | None = None
        self._ready = False
        self._output = tempfile.TemporaryFile()

    def evaluate(
        self, problem: Problem, candidate: Candidate, best_ns: float | None, limit: float
    ) -> Success | Failure:
        reply = self._call(Request("evaluate", problem, [candidate.to_json()], best_ns), limit)
        assert isinstance(reply, Success | Failure)
        return reply

    def race(
        self, problem: Problem, candidates: list[Candidate], seconds: float, limit: float
    ) -> RaceResult | Failure:
        values = [candidate.to_json() for candidate in candidates]
        reply = self._call(Request("race", problem, values, seconds=seconds), limit)
        assert isinstance(reply, RaceResult | Failure)
        return reply

    def validate(self, problem: Problem, candidate: Candidate, limit: float) -> Accuracy | Failure:
        reply = self._call(Request("validate", problem, [candidate.to_json()]), limit)
        assert isinstance(reply, Accuracy | Failure)
        return reply

    def start(self) -> None:
        """Start the process, without waiting until it has imported torch."""
        if self._process is not None:
            return
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=self._output,
            start_new_session=True,  # Ctrl-C is the parent's to handle
            env={**_SHORT_SPIN, **os.environ},
        )  # fmt: skip
        theirs.close()
        self._ready = False
        self._pipe.send_bytes(_SETUP.dump_json(self._setup))

    def stop(self) -> None:
        """Kill the process, if one runs; the next call starts another."""
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()
            self._process = self._pipe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._output.close()

    def _call(self, request: Request, limit: float) -> Reply:
        self.start()
        assert self._pipe is not None
        try:
            if not self._ready:
                if not self._pipe.poll(START_SECONDS):
                    self.stop()
                    return Failure(Status.TIMEOUT, f"no worker within {START_SECONDS:.0f} s")
                self._ready = self._pipe.recv_bytes() == READY
            self._pipe.send_bytes(_REQUEST.dump_json(request))
            if self._pipe.poll(limit):
                return _REPLY.validate_json(self._pipe.recv_bytes())
        except (EOFError, OSError):
            return Failure(Status.RUNTIME_ERROR, self._obituary())
        self.stop()
        return Failure(Status.TIMEOUT, f"no answer within {limit:.0f} s; the worker was killed")

    def _obituary(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self.stop()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._output.seek(0)
        last = self._output.read().decode(errors="replace").strip().splitlines()[-3:]
        self._output.seek(0)
        self._output.truncate()
        return f"the worker died with {how}" + "".join(f" | {line}" for line in last)


def main() -> None:
    """Serve requests until the parent closes the pipe or dies."""
    _die_with_parent()
    pipe: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    setup = _SETUP.validate_json(pipe.recv_bytes())
    bench = Bench(setup.device, setup.toolchain, setup.policy, setup.seed)
    pipe.send_bytes(READY)
    try:
        while True:
            request = _REQUEST.validate_json(pipe.recv_bytes())
            pipe.send_bytes(_REPLY.dump_json(_serve(bench, request)))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone: no clean-up may hold this process


def _die_with_parent() -> None:
    """On Linux, so that a kernel that hangs does not outlive a killed tuner."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _serve(bench: Bench, request: Request) -> Reply:
    candidates = [candidate_from_json(values) for values in request.candidates]
    if request.method == "evaluate":
        return bench.evaluate(request.problem, candidates[0], request.best_ns)
    if request.method == "race":
        return bench.race(request.problem, candidates, request.seconds)
    return bench.validate(request.problem, candidates[0])


if __name__ == "__main__":
    main()
